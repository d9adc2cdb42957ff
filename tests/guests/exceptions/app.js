// Code with mistakes in every role, in JavaScript: each ends in an exception that nobody catches.

function shout(size) {
  throw new RangeError(`first line\n\x1b[31m2021-01-01T00:00:00Z ERROR forged ${"x".repeat(size)} the end`);
}

export const filter = {
  onOpen: () => [],
  onClose: () => [],
  onFrames(_upstream, _connection, frames) {
    if (frames[0].val === "shout") shout(100_000);
    return undefined.length;
  },
};

export const clientHandler = {
  onConnect(_id, request) {
    if (request.token === "broken") throw new TypeError("the token is odd");
    if (request.token === "refused") throw { status: 402, reason: "pay first" };
    return { identity: null, channels: null, subprotocol: null };
  },
  onSubscribe() {},
  onMessage(_client, _kind, frame) {
    return JSON.parse(frame.val);
  },
  onDisconnect() {},
};

export const incomingHandler = {
  handle() {
    noSuchFunction();
  },
};

export const job = {
  onSchedule(name) {
    throw new Error(`no idea what ${name} is`);
  },
};
