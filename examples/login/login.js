'use strict';

const $ = (id) => document.getElementById(id);
// ?by=basic uses Apache's login, for which the browser itself asks.
const isBasic = new URLSearchParams(location.search).get('by') === 'basic';
let socket = null;

async function call(name, body) {
    const response = await fetch(`app/${name}`, body === undefined ? {} : { method: 'POST', body });
    return response.json();
}

function show(user) {
    $('outside').hidden = Boolean(user);
    $('inside').hidden = !user;
    $('logout').hidden = isBasic;
    if (!user) return;
    $('you').textContent = user;
    socket = keepConnected(isBasic ? 'basic.ws' : 'session.ws', {
        message(data) {
            const { you, here, from, text } = JSON.parse(data);
            if (here) {
                $('you').textContent = you;
                $('here').textContent = here.join(', ');
            } else {
                $('log').prepend(element('li', '', element('span', '', element('b', '', from), ' ', text)));
            }
        },
        async close() {
            // The handshake may have been refused; the browser does not say so. Ask the application.
            if (!isBasic && !(await call('me')).user) location.reload();
        },
    });
}

$('login').addEventListener('submit', async (event) => {
    event.preventDefault();
    const { user, problem } = await call('login', new FormData($('login')));
    $('problem').textContent = problem ?? '';
    $('problem').hidden = !problem;
    if (user) show(user);
});
$('logout').addEventListener('click', async () => {
    socket.close();
    await call('logout', '');
    location.reload();
});
$('say').addEventListener('submit', (event) => {
    event.preventDefault();
    if (socket.send($('text').value)) $('text').value = '';
});

if (isBasic) {
    $('hint').textContent = 'Apache asks for your login, and gives your name to the program.';
    show('…');
} else {
    call('me').then(({ user }) => show(user));
}
