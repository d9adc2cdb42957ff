// The client handler: answers what clients ask on their WebSocket.
//
// {"get":"public"} is answered by {"public":{"BTC-USD":"60234.1",…}}, {"get":"products"} by {"products":["BTC-USD",…]}.
// Anything else is answered by an error that says what may be asked.
import { prices, products } from "./state.js";

// The longest question, in characters.
const LONGEST = 100;

export const clientHandler = {
  // Everybody is let in, to the channels they ask for. To refuse a client: throw { status: 401, reason: "…" }.
  onConnect(_id, _request) {
    return { identity: null, channels: null, subprotocol: null };
  },

  onSubscribe(_client, _channel, _data) {},

  onMessage(_client, _kind, frame) {
    if (frame.tag !== "text") return [wrong("only text is understood")];
    switch (question(frame.val)) {
      case "public":
        return [reply({ public: prices() })];
      case "products":
        return [reply({ products: products() })];
      default:
        return [wrong('ask {"get":"public"} or {"get":"products"}')];
    }
  },

  onDisconnect(_client, _reason) {},
};

// What a message asks for, if it asks for exactly one thing. A longer message is no question: JSON with ten thousand
// brackets would overflow the stack and end the call.
function question(text) {
  if (text.length > LONGEST) return undefined;
  try {
    const message = JSON.parse(text);
    return Object.keys(message).join() === "get" ? message.get : undefined;
  } catch {
    return undefined;
  }
}

function reply(answer) {
  return { tag: "reply", val: { tag: "text", val: JSON.stringify(answer) } };
}

function wrong(message) {
  return { tag: "error", val: { code: 400, message } };
}
