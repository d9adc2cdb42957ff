// The relay that teams write by hand: each message of one upstream connection goes to every client of a `ws` server.
// node ws.js UPSTREAM
"use strict";

const { WebSocket, WebSocketServer } = require("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });
server.on("listening", () => {
  const { version } = require("ws/package.json");
  console.log(`version Node ${process.versions.node}, ws ${version}`);
  console.log(`listening 127.0.0.1:${server.address().port}`);
  const upstream = new WebSocket(process.argv[2], { perMessageDeflate: false });
  upstream.on("message", (data, isBinary) => {
    for (const client of server.clients) {
      if (client.readyState === WebSocket.OPEN) client.send(data, { binary: isBinary });
    }
  });
});
