'use strict';

const log = document.getElementById('log');
const state = document.getElementById('state');
const url = new URL('liveblog.ws', location.href);
url.protocol = url.protocol.replace('http', 'ws'); // https: becomes wss:

const client = new Centrifuge(url.href);
const blog = client.newSubscription('blog');
const entries = new Map(); // by offset: an entry of the history can also arrive as a publication

function show() {
    const newestFirst = [...entries].sort(([one], [other]) => other - one);
    log.replaceChildren(...newestFirst.map(([, { at, text }]) => {
        const line = document.createElement('li');
        const said = document.createElement('span');
        const time = document.createElement('time');
        said.textContent = text;
        time.textContent = new Date(at * 1000).toLocaleTimeString();
        time.className = 'time';
        line.append(said, time);
        return line;
    }));
}

function keep({ offset, data }) {
    entries.set(offset, data);
}

blog.on('publication', (publication) => {
    keep(publication);
    show();
});
blog.on('subscribed', async ({ wasRecovering, recovered }) => {
    if (wasRecovering && recovered) return; // what was missed arrives as publications
    entries.clear();
    const { publications } = await blog.history({ limit: -1 });
    publications.forEach(keep);
    show();
});
client.on('state', ({ newState }) => {
    state.textContent = newState === 'connected' ? 'open' : newState;
    state.className = `state ${newState === 'connected' ? 'open' : 'closed'}`;
});
blog.subscribe();
client.connect();
