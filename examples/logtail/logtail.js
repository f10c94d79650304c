'use strict';

const $ = (id) => document.getElementById(id);
const MAX_LINES = 2000;
const TYPING_MS = 250; // pause in typing before the filter is sent
let wanted = '';
let timer = 0;

const socket = keepConnected('logtail.ws', {
    message(data) {
        const { of, lines = [], skipped } = JSON.parse(data);
        if (of === '' && wanted) socket.send(wanted); // after a reconnect or a deploy
        if (of !== undefined) $('lines').replaceChildren();
        if (skipped) $('lines').append(element('li', 'skipped', `… ${skipped} lines skipped: this page was too slow`));
        $('lines').append(...lines.map(lineElement));
        while ($('lines').childElementCount > MAX_LINES) $('lines').firstElementChild.remove();
        const count = $('lines').childElementCount;
        $('count').textContent = `${count} ${count === 1 ? 'line' : 'lines'}`;
        if ($('follow').checked) $('pane').scrollTop = $('pane').scrollHeight;
    },
});

/** Create a line with the matches of the filter marked. */
function lineElement(line) {
    const made = element('li', '');
    let from = 0;
    if (wanted) {
        const lower = line.toLowerCase();
        const part = wanted.toLowerCase();
        for (let at; (at = lower.indexOf(part, from)) >= 0; from = at + part.length) {
            made.append(line.slice(from, at), element('mark', '', line.slice(at, at + part.length)));
        }
    }
    made.append(line.slice(from));
    return made;
}

function filter() {
    clearTimeout(timer);
    if (wanted === $('filter').value) return;
    wanted = $('filter').value;
    socket.send(wanted);
}

$('filter').addEventListener('input', () => {
    clearTimeout(timer);
    timer = setTimeout(filter, TYPING_MS);
});
$('form').addEventListener('submit', (event) => {
    event.preventDefault();
    filter();
});
$('follow').addEventListener('change', () => {
    if ($('follow').checked) $('pane').scrollTop = $('pane').scrollHeight;
});
// Scrolling up stops following; scrolling to the end starts it again.
$('pane').addEventListener('scroll', () => {
    const pane = $('pane');
    $('follow').checked = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 30;
});
