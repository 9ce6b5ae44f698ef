// What gguf_ends.py asks of llama.cpp: node llamacpp_vocabulary.mjs NODE_MODULES REQUEST.json, answers JSON on stdout.
// Request: {files: [{file, size}], texts}. Answer: for each file {ends, plain, special}, or {error}.
import fs from "fs";
import path from "path";
import {pathToFileURL} from "url";

const [, , modules, request] = process.argv;
const entry = path.join(modules, "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry).href);
const asked = JSON.parse(fs.readFileSync(request, "utf8"));
const llama = await getLlama({build: "never", gpu: false, logLevel: "disabled"});
const answers = [];
for (const {file, size} of asked.files) {
    try {
        const model = await llama.loadModel({modelPath: file, vocabOnly: true});
        const ends = [];
        for (let id = 0; id < size; id++) if (model.isEogToken(id)) ends.push(id);
        const ids = (special) => asked.texts.map((text) => Array.from(model.tokenize(text, special)));
        answers.push({ends, plain: ids(false), special: ids(true)});
        await model.dispose();
    } catch (error) {
        answers.push({error: String(error)});
    }
}
console.log(JSON.stringify(answers));
await llama.dispose();
