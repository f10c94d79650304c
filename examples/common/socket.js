'use strict';

/**
 * Keep a WebSocket open: connect, and again when it is lost, after a random time that
 * grows. Random, so that a thousand pages do not all come back in the same second.
 *
 * @param {string} path  of the socket file, relative to the page; with a query perhaps
 * @param {object} on    message(text), and if wanted open() and close(event)
 * @returns {{send: function(string): boolean, close: function(): void}}
 */
function keepConnected(path, on) {
    const state = document.getElementById('state');
    const url = new URL(path, location.href);
    url.protocol = url.protocol.replace('http', 'ws'); // and https: becomes wss:
    let socket = null;
    let waitMs = 500;
    let timer = 0;

    function open() {
        socket = new WebSocket(url);
        show('connecting');
        socket.onopen = () => {
            waitMs = 500;
            show('open', 'open');
            on.open?.();
        };
        socket.onmessage = (event) => on.message(event.data);
        socket.onclose = (event) => {
            show(`closed, ${event.code}${event.reason ? `: ${event.reason}` : ''}`, 'closed');
            on.close?.(event);
            // 1008: the producer does not want this client; it would not the next time.
            if (event.code === 1008) return;
            timer = setTimeout(open, waitMs * (0.5 + Math.random()));
            waitMs = Math.min(waitMs * 2, 15000);
        };
    }

    function show(text, kind = '') {
        state.textContent = text;
        state.className = `state ${kind}`;
    }

    open();
    return {
        send(text) {
            const isOpen = socket.readyState === WebSocket.OPEN;
            if (isOpen) socket.send(text);
            return isOpen;
        },
        /** Close for good. */
        close() {
            clearTimeout(timer);
            // What comes of it yet is not to be taken for the next one's.
            socket.onopen = socket.onmessage = socket.onclose = null;
            socket.close();
            show('closed');
        },
    };
}

/** Make an element: its text is text, never HTML. */
function element(name, className, ...content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...content);
    return made;
}
