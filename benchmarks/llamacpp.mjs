// What gguf_llamacpp.py asks of llama.cpp: node llamacpp.mjs NODE_MODULES MODEL.gguf REQUEST.json, answers JSON on stdout.
// Request: {threads, texts, prompts, chunks, new}; prompts and chunks are token ids.
import fs from "fs";
import path from "path";
import {pathToFileURL} from "url";

const [, , modules, file, request] = process.argv;
const entry = path.join(modules, "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry).href);
const asked = JSON.parse(fs.readFileSync(request, "utf8"));
const llama = await getLlama({build: "never", gpu: false, logLevel: "error", maxThreads: asked.threads});
const model = await llama.loadModel({modelPath: file});
const longest = Math.max(...asked.chunks.map((c) => c.length), ...asked.prompts.map((p) => p.length + asked.new));
const context = await model.createContext({contextSize: longest + 8, threads: asked.threads, swaFullCache: true});
const sequence = context.getSequence();

async function greedy(ids) {
    await sequence.clearHistory();
    const found = [];
    let first = 0n;
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        if (found.length === 0) first = process.hrtime.bigint();
        found.push(token);
        if (found.length === asked.new) break;
    }
    return {ids: found, seconds: Number(process.hrtime.bigint() - first) / 1e9};
}

// Minus the log probability of every token after the first. From all logits: weights of samplers are cut.
async function surprise(ids) {
    await sequence.clearHistory();
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

const answer = {ids: asked.texts.map((t) => Array.from(model.tokenize(t, true))), greedy: [], surprise: []};
for (const prompt of asked.prompts) answer.greedy.push(await greedy(prompt));
for (const chunk of asked.chunks) answer.surprise.push(await surprise(chunk));
console.log(JSON.stringify(answer));
await llama.dispose();
