// The `ai` package on the same bytes as ours: one line of JSON with what a pass took, and the
// message. Called by `python -m benchmarks.fold`:
//
//   node fold.mjs NODE_MODULES FILE READ WAY SECONDS
//
// READ is the bytes of one read, or 0 for one event a read. WAY is `reader`, the package's
// transport and its readUIMessageStream; `final`, the same transport and the function that the
// reader drives, with no message cloned or handed on until the last; `unchecked`, that without
// the check of each chunk against its schema. Passes are repeated for SECONDS.

import { readFileSync } from 'node:fs';
import { createRequire, register } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file, read, way, seconds] = process.argv.slice(2);

// The package keeps processUIMessageStream to itself: a loader adds it to what it exports.
const inner = ['processUIMessageStream', 'createStreamingUIMessageState'];
const hook = `export async function load(url, context, next) {
  const loaded = await next(url, context);
  if (!url.endsWith('/ai/dist/index.mjs')) return loaded;
  return { ...loaded, source: loaded.source + ${JSON.stringify(`\nexport { ${inner} };\n`)} };
}`;
register('data:text/javascript,' + encodeURIComponent(hook));

const ai = await import(pathToFileURL(join(folder, 'ai/dist/index.mjs')));
const version = createRequire(import.meta.url)(join(folder, 'ai/package.json')).version;

function readsOf(bytes) {
  const reads = [];
  let from = 0;
  while (from < bytes.length) {
    const to = +read ? from + +read : bytes.indexOf('\n\n', from) + 2;
    reads.push(new Uint8Array(bytes.subarray(from, to)));
    from = to;
  }
  return reads;
}

function bodyOf(reads) {
  let next = 0;
  return new ReadableStream({
    pull(controller) {
      if (next < reads.length) controller.enqueue(reads[next++]);
      else controller.close();
    },
  });
}

function chunksOf(body) {
  if (way !== 'unchecked') return new ai.DefaultChatTransport().processResponseStream(body);
  return ai.parseJsonEventStream({ stream: body }).pipeThrough(
    new TransformStream({
      transform(result, controller) {
        controller.enqueue(result.value);
      },
    }),
  );
}

function fail(error) {
  throw error;
}

async function folded(reads) {
  const stream = chunksOf(bodyOf(reads));
  if (way === 'reader') {
    let last;
    const messages = ai.readUIMessageStream({ stream, onError: fail, terminateOnError: true });
    for await (const message of messages) last = message;
    return last;
  }
  const state = ai.createStreamingUIMessageState({ messageId: '' });
  const runUpdateMessageJob = job => job({ state, write() {} });
  const processed = ai.processUIMessageStream({ stream, runUpdateMessageJob, onError: fail });
  await ai.consumeStream({ stream: processed, onError: fail });
  return state.message;
}

function median(values) {
  return values.sort((a, b) => a - b)[values.length >> 1];
}

const bytes = readFileSync(file);
const reads = readsOf(bytes);
// What the machine has compiled by then is not charged to the first pass.
const warm = reads.slice(0, +read ? Math.ceil(1e5 / +read) : 1000);
await folded(warm);

const walls = [];
const cpus = [];
let message;
const begun = performance.now();
do {
  const wall = performance.now();
  const cpu = process.cpuUsage();
  message = await folded(reads);
  const { user, system } = process.cpuUsage(cpu);
  walls.push((performance.now() - wall) / 1e3);
  cpus.push((user + system) / 1e6);
} while (performance.now() - begun < seconds * 1e3);

console.log(
  JSON.stringify({ version, seconds: median(walls), cpu_s: median(cpus), passes: walls.length, message }),
);
