// The sample tenant `market` in JavaScript: one component with every role. Each export is an object with the functions
// of one interface of the WIT. Its name is the interface's in camel case: `client-handler` is `clientHandler`.
//
// Several instances of this run side by side, in the roles that the manifest gives them. The host makes and drops them
// as it likes. An instance does not see the variables of another: they share only the tenant's state.
export { filter } from "./filter.js";
export { clientHandler } from "./client.js";
export { incomingHandler } from "./api.js";
export { job } from "./job.js";
