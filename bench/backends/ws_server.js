// The peer "Node ws": echo, or each message to all, with Node's library ws.
//
// Run as "node ws_server.js echo|fan-out BACKLOG MAX_MESSAGE_BYTES"; NODE_PATH names the folder of
// the packages.  It prints the port on which it listens.
"use strict";

const http = require("node:http");
const { WebSocket, WebSocketServer } = require("ws");

const [mode, backlog, maxPayload] = process.argv.slice(2);
const server = http.createServer();
const websockets = new WebSocketServer({
  server,
  perMessageDeflate: false,
  maxPayload: Number(maxPayload),
});

websockets.on("connection", (socket) => {
  socket.on("message", (message, isBinary) => {
    // In fan-out a text is a greeting, which is answered.
    if (mode !== "fan-out" || !isBinary) {
      socket.send(message, { binary: isBinary });
      return;
    }
    for (const client of websockets.clients) {
      if (client.readyState === WebSocket.OPEN) client.send(message, { binary: true });
    }
  });
  socket.on("error", () => socket.terminate());
});

server.listen({ host: "127.0.0.1", port: 0, backlog: Number(backlog) }, () => {
  console.log(`listening ${server.address().port}`);
});
