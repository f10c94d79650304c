'use strict';

const MAX_LINES = 200;
const text = document.getElementById('text');
const log = document.getElementById('log');
const sentAt = []; // of the messages under way: answers arrive in order

const socket = keepConnected('echo.ws', {
    message(said) {
        const took = `${(performance.now() - sentAt.shift()).toFixed(1)} ms`;
        log.prepend(element('li', '', element('span', '', said), element('span', 'time', took)));
        while (log.childElementCount > MAX_LINES) log.lastElementChild.remove();
    },
    close() {
        sentAt.length = 0;
    },
});

document.getElementById('form').addEventListener('submit', (event) => {
    event.preventDefault();
    if (socket.send(text.value)) sentAt.push(performance.now());
    text.select();
});
