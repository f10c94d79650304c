'use strict';

const MAX_LINES = 100;
const log = document.getElementById('log');
const allow = document.getElementById('allow');
const plainTitle = document.title;
let unseen = 0;

keepConnected('notify.ws', {
    message(data) {
        const { title, text } = JSON.parse(data);
        const time = new Date().toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
        const said = element('span', '', element('b', '', title), ' ', text);
        log.querySelector('.hint')?.remove();
        log.prepend(element('li', '', said, element('span', 'time', time)));
        while (log.childElementCount > MAX_LINES) log.lastElementChild.remove();
        if (document.hidden) {
            unseen += 1;
            document.title = `(${unseen}) ${plainTitle}`;
            if (window.Notification?.permission === 'granted') new Notification(title, { body: text });
        }
    },
});

document.addEventListener('visibilitychange', () => {
    unseen = 0;
    document.title = plainTitle;
});
// Browsers ask only on a page from https: or localhost, and only when a button is pressed.
if (window.isSecureContext && window.Notification?.permission === 'default') {
    allow.hidden = false;
    allow.addEventListener('click', async () => {
        await Notification.requestPermission();
        allow.hidden = true;
    });
}
