// Text from a model in models/NAME, where ?model=NAME, by transformers.js and the WebAssembly build of ONNX Runtime.
import * as hf from './node_modules/@huggingface/transformers/dist/transformers.min.js';

hf.env.allowLocalModels = true;
hf.env.allowRemoteModels = false;
hf.env.localModelPath = './models/';
hf.env.backends.onnx.wasm.wasmPaths = new URL('node_modules/onnxruntime-web/dist/', location.href).href;

const name = new URLSearchParams(location.search).get('model') ?? 'smollm2';
const [form, answer, status] = ['form', '#answer', '#status'].map((s) => document.querySelector(s));

async function start() {
  const generate = await hf.pipeline('text-generation', name);
  status.textContent = `${name} is ready.`;
  form.querySelector('button').disabled = false;
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const text = form.elements.prompt.value;
    const prompt = generate.tokenizer.chat_template ? [{ role: 'user', content: text }] : text;
    answer.textContent = '';
    const write = (piece) => answer.append(piece);
    const streamer = new hf.TextStreamer(generate.tokenizer, { skip_prompt: true, callback_function: write });
    status.textContent = 'Writing…';
    await generate(prompt, { max_new_tokens: 64, do_sample: false, streamer });
    status.textContent = 'Done.';
  });
}

start().catch((error) => (status.textContent = String(error)));
