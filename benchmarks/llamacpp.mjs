// llama.cpp by the protocol of serving_worker.py: node llamacpp.mjs NODE_MODULES MODEL.gguf THREADS, a request a line.
// Beside prefill, decode, surprise and memory: ids {texts} gives token ids, greedy {tokens, new} the likeliest continuation.
import {readFileSync} from "fs";
import path from "path";
import readline from "readline";
import {pathToFileURL} from "url";

const [, , modules, file, threads] = process.argv;
const {getLlama} = await import(pathToFileURL(path.join(modules, "node-llama-cpp", "dist", "index.js")).href);
const llama = await getLlama({build: "never", gpu: false, logLevel: "error", maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath: file});
const contexts = new Map();

// A context for so many rows, kept: making one is not part of what is measured.
async function sequences(rows) {
    if (!contexts.has(rows)) {
        const settings = {contextSize: rows > 1 ? 512 : 2304, sequences: rows, threads: Number(threads), batchSize: 512};
        const context = await model.createContext({...settings, swaFullCache: true});
        contexts.set(rows, Array.from({length: rows}, () => context.getSequence()));
    }
    return contexts.get(rows);
}

const now = () => Number(process.hrtime.bigint()) / 1e9;

// The next tokens of one row, and when each of them came.
async function continued(sequence, ids, count) {
    const found = {ids: [], times: []};
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        found.times.push(now());
        found.ids.push(token);
        if (found.ids.length === count) break;
    }
    return found;
}

// Minus the log probability of every token after the first. From all logits: weights of samplers are cut.
async function surprise(sequence, ids) {
    let total = 0;
    const input = ids.map((token, i) => (i + 1 < ids.length ? [token, {generateNext: {logits: true}}] : token));
    const seen = (i, {next: {logits}}) => {
        const most = logits.values().next().value; // They come in order, the largest first.
        let sum = 0;
        for (const x of logits.values()) sum += Math.exp(x - most);
        total += Math.log(sum) + most - logits.get(ids[i + 1]);
        logits.clear();
    };
    await sequence.controlledEvaluate(input, {onTokenResult: seen});
    return total;
}

async function answer(asked) {
    if (asked.do === "memory") {
        // Not `maxRSS`, which begins with what the process that started this one had.
        const status = readFileSync("/proc/self/status", "utf8");
        return {bytes: Number(/VmHWM:\s+(\d+)/.exec(status)[1]) * 1024};
    }
    if (asked.do === "ids") return {ids: asked.texts.map((text) => Array.from(model.tokenize(text, true)))};
    const rows = await sequences(asked.rows ?? 1);
    for (const sequence of rows) await sequence.clearHistory();
    if (asked.do === "surprise") return {nats: await surprise(rows[0], asked.tokens)};
    if (asked.do === "greedy") {
        const {ids, times} = await continued(rows[0], asked.tokens, asked.new);
        return {ids, seconds: times.at(-1) - times[0]};
    }
    const start = now();
    if (asked.do === "prefill") return {seconds: (await continued(rows[0], asked.tokens, 1)).times[0] - start};
    const found = await Promise.all(rows.map((sequence) => continued(sequence, asked.tokens, asked.new + 2)));
    // From when every row has its second token, to when all have their last.
    const first = Math.max(...found.map(({times}) => times[1]));
    const last = Math.max(...found.map(({times}) => times[asked.new + 1]));
    return {seconds: (last - first) / asked.new};
}

console.log(JSON.stringify({ready: "llama.cpp"}));
for await (const line of readline.createInterface({input: process.stdin})) {
    console.log(JSON.stringify(await answer(JSON.parse(line))));
}
await llama.dispose();
