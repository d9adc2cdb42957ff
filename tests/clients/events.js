// One EventSource of a page. Its events are in `heard`, in order.
globalThis.heard = [];

globalThis.listen = (url) => {
  globalThis.source = new EventSource(url);
  for (const event of ["message", "binary", "gap"]) {
    source.addEventListener(event, ({ data, lastEventId }) => heard.push({ event, data, id: lastEventId }));
  }
  for (const event of ["open", "error"]) {
    source.addEventListener(event, () => heard.push({ event }));
  }
  return null;
};

globalThis.all = (event) => heard.filter((each) => each.event === event);

// The data of all messages.
globalThis.messages = () => all("message").map((message) => message.data);

null;
