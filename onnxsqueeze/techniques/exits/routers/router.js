// Runs a model with an early exit in a browser or in node: inputs that the stem is sure of get its answer, the others
// go through the rest. `ort` is onnxruntime-web or onnxruntime-node; `read(name)` resolves to the bytes of a file beside it.
//
//   const router = await makeRouter(ort, name => fetch(name).then(r => r.arrayBuffer()));
//   const answer = await router({ input: new ort.Tensor("float32", data, [1, 1, 28, 28]) });

async function makeRouter(ort, read, options = {}) {
  const about = JSON.parse(new TextDecoder().decode(await read("exits.json")));
  const load = async name => ort.InferenceSession.create(new Uint8Array(await read(name)), options);
  const [stem, rest] = [await load("stem.onnx"), await load("rest.onnx")];
  const { answer, confidence, crossing } = about.outputs;
  const rows = (tensor, chosen) => {
    const width = tensor.data.length / tensor.dims[0];
    const data = new tensor.data.constructor(chosen.length * width);
    chosen.forEach((row, i) => data.set(tensor.data.subarray(row * width, (row + 1) * width), i * width));
    return new ort.Tensor(tensor.type, data, [chosen.length, ...tensor.dims.slice(1)]);
  };
  const router = async feed => {
    const found = await stem.run(feed);
    const sure = found[confidence].data;
    const unsure = [...sure.keys()].filter(row => !(sure[row] >= Math.fround(about.threshold)));
    router.count += sure.length;
    router.early += sure.length - unsure.length;
    if (!unsure.length) return found[answer];
    const all = unsure.length === sure.length;
    const late = (await rest.run({ [crossing]: all ? found[crossing] : rows(found[crossing], unsure) }))[about.answer];
    if (all) return late;
    const data = found[answer].data.slice();
    const width = data.length / sure.length;
    unsure.forEach((row, i) => data.set(late.data.subarray(i * width, (i + 1) * width), row * width));
    return new ort.Tensor("float32", data, found[answer].dims);
  };
  router.count = router.early = 0;
  return router;
}

if (typeof module !== "undefined") module.exports = { makeRouter };
