// The peer "uWebSockets.js": echo, or each message to all, with its publish and subscribe.
//
// Run as "node uws_server.js echo|fan-out BACKLOG MAX_MESSAGE_BYTES"; NODE_PATH names the folder of
// the packages.  It prints the port on which it listens.  (The library has a backlog of its own.)
"use strict";

// The compiled module itself: the package's own entry replaces it with JavaScript on failure.
const package_name = "@trufflesuite/uws-js-unofficial";
const build = `uws_${process.platform}_${process.arch}_${process.versions.modules}.node`;
const uws = require(`${package_name}/binaries/${build}`);

const [mode, , maxPayload] = process.argv.slice(2);
const ALL = "all";
const app = uws.App();

app.ws("/*", {
  compression: uws.DISABLED,
  maxPayloadLength: Number(maxPayload),
  maxBackpressure: 64 * 1024 * 1024,
  idleTimeout: 0,
  sendPingsAutomatically: false,
  open: (socket) => {
    if (mode === "fan-out") socket.subscribe(ALL);
  },
  message: (socket, message, isBinary) => {
    // In fan-out a text is a greeting, which is answered.
    if (mode === "fan-out" && isBinary) app.publish(ALL, message, true);
    else socket.send(message, isBinary);
  },
});

app.listen("127.0.0.1", 0, (listening) => {
  if (!listening) process.exit(1);
  console.log(`listening ${uws.us_socket_local_port(listening)}`);
});
