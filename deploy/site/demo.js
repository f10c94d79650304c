'use strict';

const $ = (id) => document.getElementById(id);
const base = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}`;
$('scheme').textContent = base;

/** Add a line to a log, newest first; text only, never HTML. */
function addLine(log, text, { name = '', time = '' } = {}) {
    const line = document.createElement('li');
    const said = document.createElement('span');
    if (name) {
        const who = document.createElement('b');
        who.textContent = name;
        said.append(who, ' ');
    }
    said.append(text);
    line.append(said);
    if (time) {
        const when = document.createElement('span');
        when.className = 'time';
        when.textContent = time;
        line.append(when);
    }
    log.prepend(line);
    while (log.childElementCount > 200) log.lastElementChild.remove();
}

/** Keep a WebSocket open: connect, and again when it is lost. */
function connect(path, prefix, onMessage, onClose = () => {}) {
    const state = $(`${prefix}-state`);
    const button = $(`${prefix}-form`).querySelector('button');
    const connection = { socket: null };
    let wait = 500; // milliseconds
    const open = () => {
        const socket = new WebSocket(base + path);
        connection.socket = socket;
        socket.onopen = () => {
            wait = 500;
            state.textContent = 'open';
            state.className = 'state open';
            button.disabled = false;
        };
        socket.onmessage = (event) => onMessage(event.data);
        socket.onclose = (event) => {
            const reason = event.reason ? ` (${event.reason})` : '';
            state.textContent = `closed, ${event.code}${reason}`;
            state.className = 'state closed';
            button.disabled = true;
            onClose();
            setTimeout(open, wait * (0.5 + Math.random()));
            wait = Math.min(wait * 2, 10000);
        };
    };
    button.disabled = true;
    open();
    return connection;
}

const sentAt = [];
const echo = connect('/echo.ws', 'echo', (data) => {
    const took = performance.now() - sentAt.shift();
    addLine($('echo-log'), data, { time: `${took.toFixed(1)} ms` });
}, () => { sentAt.length = 0; });
$('echo-form').addEventListener('submit', (event) => {
    event.preventDefault();
    sentAt.push(performance.now());
    echo.socket.send($('echo-input').value);
    $('echo-input').select();
});

const chat = connect('/chat.ws', 'chat', (data) => {
    const message = JSON.parse(data);
    if ('count' in message) {
        $('count').textContent = message.count;
    } else {
        addLine($('chat-log'), message.text, { name: message.name });
    }
});
$('chat-name').value = `guest ${Math.floor(Math.random() * 900) + 100}`;
$('chat-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const name = $('chat-name').value;
    chat.socket.send(JSON.stringify({ name, text: $('chat-input').value }));
    $('chat-input').value = '';
});
