// One client of the Centrifuge SDK, in Node or in a page. Its events are in `heard`, in order: the event's name, what
// came with it, and in `from` whether the client or one of its subscriptions had it.
globalThis.heard = [];
globalThis.subscriptions = {};

function hear(source, from, events) {
  for (const event of events) {
    source.on(event, (context) => heard.push({ event, from, ...context }));
  }
}

// Begins to connect. Its pauses are short, since tests wait for it.
globalThis.start = (url, options, Sdk = Centrifuge) => {
  const impatient = { minReconnectDelay: 20, maxReconnectDelay: 100, websocket: WebSocket };
  globalThis.client = new Sdk(url, { ...impatient, ...options });
  hear(client, "client", ["connecting", "connected", "disconnected", "message", "error"]);
  hear(client, "server", ["subscribing", "subscribed", "unsubscribed", "publication"]);
  client.connect();
  return null;
};

// Follows a channel. Resolves when the channel is subscribed.
globalThis.follow = async (channel, options) => {
  const impatient = { minResubscribeDelay: 20, maxResubscribeDelay: 100 };
  const subscription = client.newSubscription(channel, { ...impatient, ...options });
  subscriptions[channel] = subscription;
  hear(subscription, "subscription", ["subscribing", "subscribed", "unsubscribed", "publication", "error"]);
  subscription.subscribe();
  await subscription.ready();
};

// All occurrences of an event.
globalThis.all = (event, channel) =>
  heard.filter((each) => each.event === event && (channel === undefined || each.channel === channel));

// What was published on a channel.
globalThis.published = (channel) => all("publication", channel).map((publication) => publication.data);

// The error that a promise was rejected with, or its value.
globalThis.refused = (promise) => promise.then((value) => ({ value }), ({ code, message }) => ({ code, message }));

null;
