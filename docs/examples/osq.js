// Unpacks a container of onnxsqueeze in a browser or in node 18 and newer. Free to be copied.
//
//   const files = await unpack(new Uint8Array(await (await fetch("model.osq")).arrayBuffer()));
//   const session = await ort.InferenceSession.create(files.values().next().value);

const SLOTS = 1 << 14;

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
  return ~crc >>> 0;
}
const CRC = Uint32Array.from({ length: 256 }, (_, i) => {
  for (let k = 0; k < 8; k++) i = i & 1 ? (i >>> 1) ^ 0xedb88320 : i >>> 1;
  return i;
});

// The slots of each symbol of one table, from its 256 bytes.
function frequencies(codes) {
  const weight = Array.from(codes, (code) => (code ? (8 + ((code - 1) & 7)) * 2 ** ((code - 1) >> 3) : 0));
  const total = weight.reduce((a, b) => a + b, 0);
  const present = weight.filter((each) => each).length;
  const found = weight.map((each) => (each ? 1 + Math.floor((each * (SLOTS - present)) / total) : 0));
  found[found.indexOf(Math.max(...found))] += SLOTS - found.reduce((a, b) => a + b, 0);
  return found;
}

function rans(data, contexts, codes, lanes, count) {
  const tables = codes.map(frequencies);
  const slots = tables.map((table) => {
    const all = new Uint8Array(SLOTS);
    let at = 0;
    table.forEach((f, symbol) => all.fill(symbol, at, (at += f)));
    return all;
  });
  const before = tables.map((table) => table.map(((sum) => (f) => (sum += f) - f)(0)));
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const states = Uint32Array.from({ length: lanes }, (_, lane) => view.getUint32(4 * lane, true));
  const out = new Uint8Array(count);
  let at = 4 * lanes;
  for (let i = 0; i < count; i++) {
    const lane = i % lanes, k = contexts[i], slot = states[lane] & (SLOTS - 1);
    const symbol = (out[i] = slots[k][slot]);
    let x = tables[k][symbol] * (states[lane] >>> 14) + slot - before[k][symbol];
    if (x < 65536) (x = x * 65536 + view.getUint16(at, true)), (at += 2);
    states[lane] = x;
  }
  if (at !== data.length) throw new Error("coded data does not end where it should");
  return out;
}

function huffman(data, contexts, codes, lanes, count) {
  const slots = codes.map((lengths) => {
    const all = new Uint8Array(SLOTS);
    let at = 0;
    for (let long = 1; long <= 15; long++)
      lengths.forEach((each, symbol) => each === long && all.fill(symbol, at, (at += 1 << (15 - long))));
    return all;
  });
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const bits = Uint32Array.from({ length: lanes }, (_, lane) => view.getUint32(4 * lane, true));
  const held = new Int32Array(lanes).fill(32);
  const out = new Uint8Array(count);
  let at = 4 * lanes;
  for (let i = 0; i < count; i++) {
    const lane = i % lanes, k = contexts[i];
    out[i] = slots[k][(bits[lane] >>> (held[lane] - 14)) & (SLOTS - 1)];
    held[lane] -= codes[k][out[i]] - 1;
    if (held[lane] <= 16) (bits[lane] = (bits[lane] << 16) | view.getUint16(at, true)), (held[lane] += 16), (at += 2);
  }
  return out;
}

// The raw bytes of a block: the planes of its parts are taken from pools, in order.
async function block(size, packed, body) {
  const meta = await inflate(packed);
  let at = 0;
  const read = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = meta[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  const take = (count) => meta.subarray(at, (at += count));
  const [coder, lanes, count, deflated, squeezed] = [read(), read(), read(), read(), read()];
  if (squeezed) throw new Error("this was packed with Zstandard, which browsers do not have");
  const codes = Array.from({ length: count }, () => take(256).map(((sum) => (each) => (sum += each))(0)));
  const parts = [], contexts = [], sizes = [0, 0, 0];
  for (let left = size; left > 0; ) {
    const [length, kind, width] = [read(), read(), read()];
    left -= length;
    const values = kind === 4 ? take(width * (read() + 1)) : null;
    const planes = [];
    for (let k = 0; k < (kind === 2 || kind === 3 ? width : 1); k++) {
      const method = read(), many = kind === 1 ? 2 * length : length / width;
      planes.push([method, sizes[method], many]);
      sizes[method] += many;
      if (method !== 1) continue;
      const [r, c] = [read(), read()];
      const named = take(r * c), rows = r * c > 1 ? read() : 1, columns = many / rows;
      const row = r > 1 ? take(rows) : null, column = c > 1 ? take(columns) : null;
      const found = new Uint8Array(many);
      for (let i = 0, n = 0; i < rows; i++)
        for (let j = 0; j < columns; j++) found[n++] = named[(row ? row[i] : 0) * c + (column ? column[j] : 0)];
      contexts.push(found);
    }
    parts.push({ length, kind, width, values, planes });
  }
  const pools = [body.subarray(0, sizes[0]), null, new Uint8Array(0)];
  if (deflated) pools[2] = await inflate(body.subarray(sizes[0], sizes[0] + deflated));
  if (sizes[1]) {
    const every = new Uint8Array(sizes[1]);
    let n = 0;
    for (const each of contexts) every.set(each, n), (n += each.length);
    pools[1] = [rans, huffman][coder](body.subarray(sizes[0] + deflated), every, codes, lanes, sizes[1]);
  }
  const out = new Uint8Array(size);
  let start = 0;
  for (const { length, kind, width, values, planes } of parts) {
    const target = out.subarray(start, (start += length));
    const found = planes.map(([method, from, many]) => pools[method].subarray(from, from + many));
    if (kind === 0) target.set(found[0]);
    else if (kind === 1) for (let i = 0; i < length; i++) target[i] = found[0][2 * i] | (found[0][2 * i + 1] << 4);
    else if (kind === 4)
      for (let i = 0; i < length / width; i++) target.set(values.subarray(found[0][i] * width, (found[0][i] + 1) * width), i * width);
    else
      for (let i = 0, n = 0; i < length / width; i++)
        for (let k = 0; k < width; k++)  // kind 3: the lowest bit is the sign, which belongs at the top
          target[n++] = kind === 2 ? found[k][i] : (found[k][i] >> 1) | (found[(k + 1) % width][i] << 7);
  }
  return out;
}

/** Return the files of a container by name, the model first; throws if it is damaged. */
export async function unpack(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (data.subarray(1, 4).join() !== "79,83,81" || view.getUint16(8, true) !== 1) throw new Error("not a container of version 1");
  const files = [], all = new Map();
  let at = 16;
  for (let i = 0; i < view.getUint16(10, true); i++) {
    const size = Number(view.getBigUint64(at, true)), long = view.getUint16(at + 8, true);
    files.push([new TextDecoder().decode(data.subarray(at + 10, at + 10 + long)), new Uint8Array(size)]);
    at += 10 + long;
  }
  at += 4;
  let file = 0, filled = 0;
  while (at < data.length) {
    const [size, crc, meta, body] = [0, 4, 8, 12].map((k) => view.getUint32(at + k, true));
    at += 16;
    let raw = await block(size, data.subarray(at, at + meta), data.subarray(at + meta, at + meta + body));
    if (crc32(raw) !== crc) throw new Error("a block is damaged");
    at += meta + body;
    while (raw.length) {
      while (filled === files[file][1].length) (file += 1), (filled = 0);
      const part = raw.subarray(0, files[file][1].length - filled);
      files[file][1].set(part, filled);
      filled += part.length;
      raw = raw.subarray(part.length);
    }
  }
  for (const [name, content] of files) all.set(name, content);
  return all;
}
