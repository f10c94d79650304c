// Echoes through the address given with Node's ws package; prints "ok" or what went wrong.
// Arguments: URL, file of the certificate to trust ("" for none), TLS version ("" for any).
const fs = require('fs');
const WebSocket = require('ws');

const [url, ca, version] = process.argv.slice(2);
const options = { perMessageDeflate: false };
if (ca) options.ca = fs.readFileSync(ca);
if (version) options.minVersion = options.maxVersion = version;

const messages = ['hello', '', Buffer.from([0, 255]), 'é'.repeat(1000), Buffer.alloc(200000, 7)];
// The seed's program answers an empty message with nothing.
const expected = messages.filter((message) => message.length > 0);
const socket = new WebSocket(url, options);
let received = 0;

socket.on('open', () => {
    messages.forEach((message) => socket.send(message));
    socket.ping('p');
});
socket.on('message', (data, isBinary) => {
    const wanted = expected[received++];
    const got = isBinary ? data : data.toString();
    const same = Buffer.isBuffer(wanted) ? isBinary && wanted.equals(got) : wanted === got;
    if (!same) fail(`message ${received} is not what was sent`);
    if (received === expected.length) socket.close(4000, 'done');
});
socket.on('close', (code) => {
    if (code !== 4000) fail(`closed with ${code}`);
    console.log('ok');
});
socket.on('error', (error) => fail(error.stack));

function fail(text) {
    console.log(text);
    process.exit(1);
}
