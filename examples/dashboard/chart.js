'use strict';

/**
 * A chart of the last minutes on a canvas: lines, or stacked areas.
 *
 * It takes its colours from the style sheet, which has those of the light and dark themes.
 */
class Chart {
    /**
     * @param {HTMLCanvasElement} canvas
     * @param {object} about  series: [{value(sample), colour: '--name'}]; isStacked;
     *     format(number) for the scale; max(sample) for a fixed scale; least: the smallest
     *     maximum of another scale; binary: whether steps are powers of two
     */
    constructor(canvas, about) {
        this.canvas = canvas;
        this.about = about;
    }

    /**
     * @param {object[]} samples  oldest first, each with `at` in seconds
     * @param {object} span  from, to in seconds; gap: longest time in seconds without a break in the line
     * @param {object|null} marked  the sample at the pointer
     */
    draw(samples, span, marked) {
        const { width, height } = this.canvas.getBoundingClientRect();
        if (!width) return; // hidden
        const ratio = window.devicePixelRatio || 1;
        this.canvas.width = Math.round(width * ratio);
        this.canvas.height = Math.round(height * ratio);
        const context = this.canvas.getContext('2d');
        context.scale(ratio, ratio);
        const style = getComputedStyle(this.canvas);
        this.colour = (name) => resolveColour(this.canvas, name, style);
        context.font = `11px ${style.fontFamily}`;

        const runs = this.runsOf(samples, span);
        const top = this.topOf(runs, samples);
        const steps = stepsTo(top, this.about.binary);
        // The same width in all charts unless one needs more, so that their times align.
        const label = Math.max(50, ...steps.map((step) => context.measureText(this.about.format(step)).width));
        const area = { left: Math.ceil(label) + 8, right: width - 6, top: 8, bottom: height - 20 };
        this.x = (at) => area.left + ((at - span.from) / (span.to - span.from)) * (area.right - area.left);
        this.y = (value) => area.bottom - (value / top) * (area.bottom - area.top);
        this.at = (x) => span.from + ((x - area.left) / (area.right - area.left)) * (span.to - span.from);

        this.drawScale(context, area, steps);
        this.drawTimes(context, area, span);
        context.save();
        context.beginPath();
        context.rect(area.left, 0, area.right - area.left, area.bottom + 1);
        context.clip();
        for (const run of runs) this.drawRun(context, area, run);
        context.restore();
        if (marked) this.drawMarked(context, area, marked);
    }

    /** Return runs of samples without a gap, with the values to draw. */
    runsOf(samples, span) {
        const runs = [];
        let before = -Infinity;
        for (const sample of samples) {
            if (sample.at < span.from - span.gap) continue; // keep one left of the edge
            if (sample.at - before > span.gap) runs.push([]);
            before = sample.at;
            runs.at(-1).push({ at: sample.at, values: this.valuesOf(sample) });
        }
        return runs;
    }

    /** Return one value per series; for stacked series, the upper edge. */
    valuesOf(sample) {
        let sum = 0;
        return this.about.series.map(({ value }) => {
            sum = this.about.isStacked ? sum + value(sample) : value(sample);
            return sum;
        });
    }

    topOf(runs, samples) {
        if (this.about.max && samples.length) return this.about.max(samples.at(-1));
        const most = Math.max(this.about.least ?? 1, ...runs.flatMap((run) => run.flatMap((point) => point.values)));
        return stepsTo(most * 1.05, this.about.binary).at(-1);
    }

    drawScale(context, area, steps) {
        context.textAlign = 'right';
        context.textBaseline = 'middle';
        context.lineWidth = 1;
        for (const step of steps) {
            const y = Math.round(this.y(step)) + 0.5;
            if (y < area.top - 1) continue; // above a fixed scale
            context.strokeStyle = this.colour(step ? '--grid' : '--line');
            context.beginPath();
            context.moveTo(area.left, y);
            context.lineTo(area.right, y);
            context.stroke();
            context.fillStyle = this.colour('--quiet');
            context.fillText(this.about.format(step), area.left - 8, y);
        }
    }

    drawTimes(context, area, span) {
        context.textAlign = 'center';
        context.textBaseline = 'alphabetic';
        context.fillStyle = this.colour('--quiet');
        context.strokeStyle = this.colour('--line');
        const step = [10, 15, 30, 60].find((seconds) => (span.to - span.from) / seconds <= 6);
        for (let at = Math.ceil(span.from / step) * step; at <= span.to; at += step) {
            const x = Math.round(this.x(at)) + 0.5;
            context.beginPath();
            context.moveTo(x, area.bottom);
            context.lineTo(x, area.bottom + 4);
            context.stroke();
            const text = timeOf(at, step < 60);
            const half = context.measureText(text).width / 2;
            if (x - half >= area.left - 8 && x + half <= area.right) context.fillText(text, x, area.bottom + 15);
        }
    }

    drawRun(context, area, run) {
        // The uppermost first: each area covers the part that belongs to lower ones.
        for (let index = this.about.series.length - 1; index >= 0; index -= 1) {
            const colour = this.colour(this.about.series[index].colour);
            context.beginPath();
            for (const { at, values } of run) context.lineTo(this.x(at), this.y(values[index]));
            context.strokeStyle = colour;
            context.lineWidth = 2;
            context.lineJoin = 'round';
            const line = new Path2D();
            for (const { at, values } of run) line.lineTo(this.x(at), this.y(values[index]));
            if (this.about.isStacked) {
                context.lineTo(this.x(run.at(-1).at), area.bottom);
                context.lineTo(this.x(run[0].at), area.bottom);
                context.fillStyle = this.colour('--card');
                context.fill(); // hides the areas above
                context.globalAlpha = 0.35;
                context.fillStyle = colour;
                context.fill();
                context.globalAlpha = 1;
                context.lineWidth = 1.5;
            }
            context.stroke(line);
        }
    }

    drawMarked(context, area, sample) {
        const x = this.x(sample.at);
        context.strokeStyle = this.colour('--quiet');
        context.lineWidth = 1;
        context.beginPath();
        context.moveTo(x, area.top);
        context.lineTo(x, area.bottom);
        context.stroke();
        this.valuesOf(sample).forEach((value, index) => {
            context.beginPath();
            context.arc(x, this.y(value), 4, 0, 2 * Math.PI);
            context.fillStyle = this.colour(this.about.series[index].colour);
            context.strokeStyle = this.colour('--card');
            context.lineWidth = 2;
            context.fill();
            context.stroke();
        });
    }
}

/** Resolve a custom property to a colour for a canvas. */
function resolveColour(canvas, name, style) {
    canvas.style.color = `var(${name})`;
    const colour = style.color; // with light-dark() resolved
    canvas.style.color = '';
    return colour;
}

/** Return 0 and round numbers up to the first one that is at least `most`. */
function stepsTo(most, isBinary = false) {
    const base = isBinary ? 1024 ** Math.floor(Math.log(most) / Math.log(1024)) : 1;
    const rough = most / base / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = base * power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const steps = [0];
    while (steps.at(-1) < most * 0.999) steps.push(steps.length * step);
    return steps;
}

function timeOf(at, hasSeconds) {
    const options = { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' };
    if (hasSeconds) options.second = '2-digit';
    return new Date(at * 1000).toLocaleTimeString([], options);
}
