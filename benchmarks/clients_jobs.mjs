// What transformers.js makes of a folder, in node or in a page: see clients.py for the jobs.

const CLASSES = {
  'causal-lm': 'AutoModelForCausalLM',
  'seq2seq-lm': 'AutoModelForSeq2SeqLM',
  'speech-to-text': 'AutoModelForSpeechSeq2Seq',
  'feature-extraction': 'AutoModel',
  'masked-lm': 'AutoModelForMaskedLM',
  'sequence-classification': 'AutoModelForSequenceClassification',
  'image-classification': 'AutoModelForImageClassification',
};

const integers = (hf, rows) =>
  new hf.Tensor('int64', BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
const floats = (hf, { shape, values }) => new hf.Tensor('float32', Float32Array.from(values), shape);

function padded(rows, pad) {
  const longest = Math.max(...rows.map((r) => r.length));
  const fill = (row, value) => [...Array(longest - row.length).fill(value), ...row];
  return [rows.map((r) => fill(r, pad)), rows.map((r) => fill(r.map(() => 1), 0))];
}

function right(rows, pad) {
  const [ids, mask] = padded(rows.map((r) => [...r].reverse()), pad);
  return [ids, mask].map((x) => x.map((r) => [...r].reverse()));
}

async function written(hf, model, inputs, job, start) {
  const length = { max_new_tokens: job.new, min_new_tokens: job.new, do_sample: false };
  const found = await model.generate({ ...inputs, ...length });
  return found.tolist().map((row) => row.slice(start).map(Number));
}

export async function answer(hf, job) {
  const model = await hf[CLASSES[job.task]].from_pretrained(job.name);
  const result = {};
  if (job.texts?.length) {
    const tokenizer = await hf.AutoTokenizer.from_pretrained(job.name);
    result.texts = job.texts.map((text) => tokenizer(text).input_ids.tolist()[0].map(Number));
  }
  const made = (rows, both) => ({ input_ids: integers(hf, both[0]), attention_mask: integers(hf, both[1]) });
  if (job.task === 'causal-lm') {
    const both = padded(job.rows, job.pad);
    result.batch = await written(hf, model, made(job.rows, both), job, both[0][0].length);
    result.single = [];
    for (const row of job.rows)
      result.single.push(...(await written(hf, model, made([row], padded([row], job.pad)), job, row.length)));
  } else if (job.task === 'seq2seq-lm') {
    result.batch = await written(hf, model, made(job.rows, right(job.rows, job.pad)), job, 1);
    result.single = [];
    for (const row of job.rows)
      result.single.push(...(await written(hf, model, made([row], right([row], job.pad)), job, 1)));
  } else if (job.task === 'speech-to-text') {
    // The library takes one recording at a time.
    const { shape, values } = job.features;
    const size = values.length / shape[0];
    result.batch = [];
    for (let i = 0; i < shape[0]; i++) {
      const one = { shape: [1, ...shape.slice(1)], values: values.slice(i * size, (i + 1) * size) };
      result.batch.push(...(await written(hf, model, { inputs: floats(hf, one) }, job, -job.new)));
    }
  } else {
    const inputs = job.features ? { pixel_values: floats(hf, job.features) } : made(job.rows, right(job.rows, job.pad));
    const found = await model(inputs);
    const values = found.last_hidden_state ?? found.logits;
    result.values = Array.from(values.data);
    result.shape = values.dims;
  }
  return result;
}
