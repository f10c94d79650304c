'use strict';

const $ = (id) => document.getElementById(id);
const MAX_LINES = 500;
let socket = null;
let me = '';
let room = '';
let lastName = null; // sender of the last line

$('name').value = sessionStorage.getItem('name') || `guest ${Math.floor(Math.random() * 900) + 100}`;
$('room').value = roomOfAddress() || 'lobby';
$('enter').addEventListener('submit', (event) => {
    event.preventDefault();
    enter();
});
$('say').addEventListener('submit', (event) => {
    event.preventDefault();
    if (socket.send($('text').value)) $('text').value = '';
});
window.addEventListener('hashchange', () => {
    if (roomOfAddress() === room) return;
    $('room').value = roomOfAddress();
    enter();
});

function roomOfAddress() {
    return decodeURIComponent(location.hash.slice(1));
}

function enter() {
    me = $('name').value.trim();
    room = $('room').value;
    sessionStorage.setItem('name', me);
    location.hash = room;
    document.title = `#${room} · apachews`;
    socket?.close();
    const query = new URLSearchParams({ room, name: me });
    socket = keepConnected(`chat.ws?${query}`, {
        message: (data) => show(JSON.parse(data)),
        open() {
            setProblem('');
            setEnabled(true);
        },
        close(event) {
            setEnabled(false);
            showPeople([]);
            if (event.code === 1008) setProblem(event.reason);
        },
    });
    $('text').focus();
}

function show(message) {
    if ('people' in message) {
        showPeople(message.people);
    } else if ('problem' in message) {
        setProblem(message.problem);
    } else if ('said' in message) {
        // Also after a lost connection: the list includes the missed messages.
        $('log').replaceChildren(element('li', 'note empty', `No messages in #${message.room} yet.`));
        lastName = null;
        message.said.forEach(addLine);
    } else {
        addLine(message);
        setProblem('');
    }
}

function addLine({ name, text, at }) {
    const log = $('log');
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const time = new Date(at * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
    const kind = `${name === me ? 'mine' : ''} ${name === lastName ? 'more' : ''}`;
    log.append(element('li', kind, element('b', '', name), element('span', 'time', time), element('p', '', text)));
    lastName = name;
    while (log.childElementCount > MAX_LINES) log.firstElementChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight; // but do not move a page that is scrolled up
}

function showPeople(people) {
    $('count').textContent = people.length;
    $('people').replaceChildren(...people.map((name) => element('li', name === me ? 'me' : '', name)));
}

function setProblem(text) {
    $('problem').textContent = text;
    $('problem').hidden = !text;
}

function setEnabled(isEnabled) {
    $('text').disabled = $('send').disabled = !isEnabled;
    if (isEnabled) $('text').focus();
}

enter();
