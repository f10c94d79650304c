'use strict';

const SHOWN_S = 300;
const LEAST_SHOWN_S = 60; // if the history is shorter
const percent = (number) => `${number < 9.95 && number % 1 ? number.toFixed(1) : Math.round(number)} %`;
const scaled = (number, base, units) => {
    let power = 0;
    while (number >= base && power < units.length - 1) {
        number /= base;
        power += 1;
    }
    return `${number < 9.95 && power && number % 1 ? number.toFixed(1) : Math.round(number)} ${units[power]}`;
};
const bytes = (number) => scaled(number, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB']);
const rate = (number) => scaled(number, 1000, ['B/s', 'kB/s', 'MB/s', 'GB/s']);
const busy = ({ cpu }) => cpu.user + cpu.system + cpu.wait + cpu.stolen;

// The charts, and the figures of a sample that each shows.
const CHARTS = [
    {
        title: 'Processor',
        figure: (sample) => [percent(busy(sample)), `load ${sample.load.toFixed(2)}, ${sample.processors} processors`],
        format: percent,
        isStacked: true,
        max: () => 100,
        series: [
            { label: 'user', value: ({ cpu }) => cpu.user, colour: '--series-1' },
            { label: 'system', value: ({ cpu }) => cpu.system, colour: '--series-2' },
            { label: 'disk wait', value: ({ cpu }) => cpu.wait, colour: '--series-3' },
            { label: 'stolen', value: ({ cpu }) => cpu.stolen, colour: '--series-4' },
        ],
    },
    {
        title: 'Memory',
        figure: ({ memory }) => [bytes(memory.used), `of ${bytes(memory.total)}, ${bytes(memory.swap)} swapped out`],
        format: bytes,
        isStacked: true,
        binary: true,
        max: ({ memory }) => memory.total,
        series: [
            { label: 'used', value: ({ memory }) => memory.used, colour: '--series-1' },
            { label: 'cache', value: ({ memory }) => memory.cache, colour: '--series-2' },
        ],
    },
    {
        title: 'Network',
        figure: ({ network }) => [rate(network.in + network.out), 'in and out'],
        format: rate,
        least: 10e3,
        series: [
            { label: 'in', value: ({ network }) => network.in, colour: '--series-1' },
            { label: 'out', value: ({ network }) => network.out, colour: '--series-2' },
        ],
    },
    {
        title: 'Disks',
        figure: ({ disk }) => [rate(disk.read + disk.written), 'read and written'],
        format: rate,
        least: 100e3,
        series: [
            { label: 'read', value: ({ disk }) => disk.read, colour: '--series-1' },
            { label: 'written', value: ({ disk }) => disk.written, colour: '--series-2' },
        ],
    },
];

const charts = document.getElementById('charts');
const cards = CHARTS.map(makeCard);
let samples = []; // oldest first
let everyS = 1;
let pointedAt = null; // time at the pointer, in seconds

function makeCard(about) {
    const canvas = element('canvas', '');
    canvas.setAttribute('role', 'img');
    const figure = element('div', 'figure');
    const time = element('time', '');
    const values = about.series.map(() => element('b', ''));
    const legend = element('ul', 'legend', ...about.series.map(({ label, colour }, index) => {
        const entry = element('li', '', `${label} `, values[index]);
        entry.style.setProperty('--colour', `var(${colour})`);
        return entry;
    }));
    const chart = new Chart(canvas, about);
    const heading = element('h2', '', element('span', '', about.title), time);
    charts.append(element('section', '', heading, figure, legend, canvas));
    canvas.addEventListener('pointermove', (event) => {
        pointedAt = chart.at?.(event.clientX - canvas.getBoundingClientRect().left);
        draw();
    });
    canvas.addEventListener('pointerleave', () => {
        pointedAt = null;
        draw();
    });
    return { about, canvas, chart, figure, time, values };
}

/** Add new samples. After a lost connection the server sends some of them again. */
function add(more) {
    const byTime = new Map([...samples, ...more].map((sample) => [sample.at, sample]));
    const newest = Math.max(...byTime.keys());
    samples = [...byTime.values()]
        .filter(({ at }) => at > newest - SHOWN_S - 10)
        .sort((one, other) => one.at - other.at);
}

let isDue = false;
function draw() {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
        isDue = false;
        if (samples.length) drawNow();
    });
}

function drawNow() {
    const to = samples.at(-1).at;
    const shownS = Math.min(SHOWN_S, Math.max(LEAST_SHOWN_S, to - samples[0].at));
    const span = { from: to - shownS, to, gap: everyS * 2.5 };
    const marked = pointedAt === null ? null : nearest(pointedAt);
    const shown = marked ?? samples.at(-1);
    for (const { about, canvas, chart, figure, time, values } of cards) {
        const [most, rest] = about.figure(shown);
        figure.replaceChildren(most, ' ', element('small', '', rest));
        time.textContent = marked ? timeOf(marked.at, true) : '';
        const texts = about.series.map(({ value }) => about.format(value(shown)));
        values.forEach((value, index) => {
            value.textContent = texts[index];
        });
        const spoken = about.series.map(({ label }, index) => `${label} ${texts[index]}`);
        canvas.setAttribute('aria-label', `${about.title}, the last minutes; ${spoken.join(', ')}`);
        chart.draw(samples, span, marked);
    }
    document.getElementById('summary').textContent = `Last at ${timeOf(to, true)}.`;
}

function nearest(at) {
    return samples.reduce((best, sample) => (Math.abs(sample.at - at) < Math.abs(best.at - at) ? sample : best));
}

keepConnected('dashboard.ws', {
    open: () => charts.classList.remove('stale'),
    message(data) {
        const message = JSON.parse(data);
        if ('samples' in message) {
            everyS = message.every_s;
            add(message.samples);
        } else {
            add([message]);
        }
        draw();
    },
    close: () => charts.classList.add('stale'),
});
new ResizeObserver(draw).observe(charts);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
