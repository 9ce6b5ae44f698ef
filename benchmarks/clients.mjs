// Run jobs with transformers.js: `node clients.mjs MODULES JOBS [CHROMIUM EXAMPLE]`, in node, or in a page of Chromium.
import { createServer } from 'node:http';
import { readFileSync, statSync, createReadStream } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, extname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const [modules, file, chromium, example] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url));
const { models, jobs } = JSON.parse(readFileSync(file, 'utf8'));
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm' };
const short = (error) => String(error?.message ?? error).split('\n')[0].slice(0, 500);

async function inNode() {
  const { answer } = await import('./clients_jobs.mjs');
  const hf = await import(pathToFileURL(join(modules, '@huggingface/transformers/dist/transformers.node.mjs')));
  Object.assign(hf.env, { allowRemoteModels: false, localModelPath: models });
  const results = {};
  for (const job of jobs) results[job.name] = await answer(hf, job).catch((e) => ({ error: short(e) }));
  return { version: hf.env.version, results };
}

/** Files of several folders under one address. */
function serve(roots) {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
    const root = Object.keys(roots).find((r) => path.startsWith(r));
    const found = resolve(roots[root], path.slice(root.length) || 'index.html');
    try {
      const size = statSync(found).size;
      response.writeHead(200, {
        'Content-Type': TYPES[extname(found)] ?? 'application/octet-stream',
        'Content-Length': size,
        'Cross-Origin-Opener-Policy': 'same-origin',
        'Cross-Origin-Embedder-Policy': 'require-corp',
      });
      createReadStream(found).pipe(response);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((done) => server.listen(0, '127.0.0.1', () => done(server)));
}

async function inBrowser() {
  const { chromium: launcher } = createRequire(join(modules, 'x'))('playwright-core');
  const server = await serve({ '/node_modules/': modules, '/models/': models, '/jobs/': here, '/': example });
  const address = `http://127.0.0.1:${server.address().port}/`;
  const args = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-sync', '--no-first-run'];
  const browser = await launcher.launch({ executablePath: chromium, args });
  const results = {};
  let version = '';
  for (const job of jobs) {
    const page = await browser.newPage();
    page.setDefaultTimeout(600_000);
    await page.goto(`${address}?model=${job.name}`);
    try {
      if (job.page) {
        // The example as a person uses it: wait for the model, give a prompt, press the button, read the answer.
        await page.waitForSelector('button:not([disabled])');
        await page.fill('textarea', job.page);
        await page.click('button');
        await page.waitForFunction(() => document.querySelector('#status').textContent === 'Done.');
        results[job.name] = { text: await page.textContent('#answer') };
      }
      const found = await page.evaluate(async (job) => {
        const hf = await import('/node_modules/@huggingface/transformers/dist/transformers.min.js');
        Object.assign(hf.env, { allowLocalModels: true, allowRemoteModels: false, localModelPath: '/models/' });
        hf.env.backends.onnx.wasm.wasmPaths = `${location.origin}/node_modules/onnxruntime-web/dist/`;
        const { answer } = await import('/jobs/clients_jobs.mjs');
        return { version: hf.env.version, ...(await answer(hf, job)) };
      }, job);
      version = found.version;
      results[job.name] = { ...results[job.name], ...found };
    } catch (error) {
      results[job.name] = { ...results[job.name], error: short(error) };
    }
    await page.close();
  }
  await browser.close();
  server.close();
  return { version, browser: browser.version(), results };
}

const found = chromium ? await inBrowser() : await inNode();
process.stdout.write(`${JSON.stringify(found)}\n`, () => process.exit(0));
