// A relay that uses Bun's own means: its server publishes natively to topics.
// bun bun.js UPSTREAM [compressed]

const compressed = process.argv[3] === "compressed";

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("this server speaks WebSocket only", { status: 426 });
  },
  websocket: {
    perMessageDeflate: compressed,
    // How far a client may fall behind before its messages are dropped: as much as `edge-relay pass` keeps for it.
    backpressureLimit: 64 * 1024 * 1024,
    open(client) {
      client.subscribe("feed");
    },
    message() {},
  },
});
console.log(`version Bun ${Bun.version}`);
console.log(`listening 127.0.0.1:${server.port}`);

const upstream = new WebSocket(process.argv[2]);
upstream.onmessage = ({ data }) => server.publish("feed", data, compressed);
