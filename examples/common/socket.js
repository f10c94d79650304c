'use strict';

/**
 * Keep a WebSocket open: connect, and reconnect after a loss, after a delay that grows. The
 * delay is random, so that a thousand pages do not all reconnect in the same second.
 *
 * @param {string} path  of the socket file, relative to the page, optionally with a query
 * @param {object} on    message(text), and optionally open() and close(event)
 * @returns {{send: function(string): boolean, close: function(): void}}
 */
function keepConnected(path, on) {
    const state = document.getElementById('state');
    const url = new URL(path, location.href);
    url.protocol = url.protocol.replace('http', 'ws'); // https: becomes wss:
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
            // 1008: the producer rejects this client, and would do so again.
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
            // Late events of this socket must not count as events of the next one.
            socket.onopen = socket.onmessage = socket.onclose = null;
            socket.close();
            show('closed');
        },
    };
}

/** Create an element. Strings in its content become text, never HTML. */
function element(name, className, ...content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...content);
    return made;
}
