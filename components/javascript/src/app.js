// The sample tenant `market` in JavaScript: one component with every role. Each export is an interface of the WIT, its name
// in camel case (`client-handler` is `clientHandler`), and an object with the interface's functions.
//
// Several instances of this run side by side, in the roles that the manifest gives them, and the host makes and drops them
// as it likes: what one of them keeps in variables no other sees. What they share is in the tenant's state.
export { filter } from "./filter.js";
export { clientHandler } from "./client.js";
export { incomingHandler } from "./api.js";
export { job } from "./job.js";
