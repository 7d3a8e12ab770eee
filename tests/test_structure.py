"""The structure of the project that no linter holds: files stay short, and every module has its tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 300
"""Lines of a file."""
LONG = {
    "tests/measure/test_answers.py",
    "tests/passes/test_prune.py",
    "onnxsqueeze/analysis/diff/matching.py",
    "onnxsqueeze/analysis/inspection/inspect.py",
    "onnxsqueeze/ir/encode.py",
    "tests/analysis/diff/test_diff.py",
    "tests/cli/test_bad_input.py",
    "tests/cli/test_main.py",
    "tests/feeds/test_reading.py",
    "tests/ir/test_round_trip.py",
    "tests/models/channel_models.py",
    "tests/models/nasty_models.py",
    "tests/models/small_models.py",
    "tests/passes/test_canonical.py",
    "tests/passes/test_int8.py",
    "tests/report/pages/test_page.py",
    "tests/techniques/pruning/test_coupling.py",
    "tests/techniques/quantization/test_arithmetic.py",
    "tests/techniques/quantization/test_ort_facts.py",
    "tests/techniques/quantization/test_search.py",
}
"""Files that are longer. The list may only get shorter."""
TOGETHER = {
    "tests/engine/test_exits.py": (
        "cli/exits",
        *(f"techniques/exits/{name}" for name in ("cuts", "features", "gather", "head", "shares", "split")),
        "techniques/exits/routers/router",
    ),
    "tests/engine/test_calibrate.py": (
        *("cli/calibrate", "engine/chunks", "workers", "engine/convergence", "statistics/partial"),
    ),
    "tests/passes/test_sparsify.py": ("techniques/sparsity/packed",),
    "tests/passes/test_clean.py": ("measure/evaluated",),
    "tests/passes/test_half.py": ("techniques/floats/narrowed",),
    "tests/techniques/floats/test_restored.py": ("techniques/floats/integers",),
    "tests/runtime/test_device.py": ("cli/profile_target",),
    "tests/runtime/test_memory.py": ("engine/footprint",),
    "tests/engine/test_use.py": ("engine/latencies", "engine/elsewhere"),
    "tests/engine/test_recipe.py": ("toml", "engine/versions"),
    "tests/measure/test_answers.py": ("measure/agreement", "measure/output_kinds", "measure/rig", "measure/variation"),
    "tests/measure/test_equivalent_outputs.py": ("measure/taps",),
    "tests/engine/test_judge.py": ("engine/opset", "engine/run"),
    "tests/engine/test_guard.py": ("engine/reference", "report/verdict"),
    "tests/search/test_hunt.py": ("search/next", "search/predict", "search/space"),
    "tests/search/test_away.py": ("cli/workers", "search/start"),
    "tests/test_workers.py": ("processes",),
    "tests/measure/test_switchboard.py": ("measure/switches",),
    "tests/search/test_auto.py": (
        "cli/family",
        "report/frontier",
        "report/pages/tried",
        "report/search",
        "search/advice",
        "search/family",
        "search/pick",
        "search/store",
        "search/trials",
    ),
    "tests/analysis/diff/test_diff.py": (
        "analysis/diff/changes",
        "analysis/diff/comparison",
        "analysis/diff/interface",
        "analysis/diff/matching",
        "analysis/diff/signature",
        "analysis/diff/trace",
        "analysis/diff/words",
        "cli/diff",
    ),
    "tests/analysis/inspection/test_inspect.py": (
        "analysis/inspection/weights",
        "cli/inspect",
    ),
    "tests/cli/test_main.py": (
        "cli/options",
        "cli/passes",
        "cli/flags",
    ),
    "tests/cli/test_bad_input.py": (
        "cli/failures",
        "errors",
        "runtime/messages",
        "graph/words",
    ),
    "tests/graph/test_view.py": ("graph/constants", "graph/walk"),
    "tests/passes/test_contract.py": (
        "contract/base",
        "contract/selection",
        "contract/plan",
        "engine/squeeze",
        "engine/course",
        "engine/opening",
    ),
    "tests/engine/test_promises.py": ("engine/order",),
    "tests/engine/test_embed.py": (
        "engine/result",
        "ir/foreign",
    ),
    "tests/engine/test_sensitivity.py": (
        "cli/sensitivity",
        "report/ranks",
        "report/sensitivity",
    ),
    "tests/feeds/test_reading.py": (
        "feeds/files",
        "feeds/images",
        "feeds/made_up",
        "feeds/types",
    ),
    "tests/container/test_container.py": (
        "container/contexts",
        "container/decoding",
        "container/encoding",
        "container/format",
        "container/huffman",
        "container/others",
        "container/packing",
        "container/planes",
        "container/rans",
        "container/tables",
        "container/unpacking",
    ),
    "tests/ir/test_packed.py": ("cli/pack", "ir/pieces"),
    "tests/ir/test_round_trip.py": (
        "ir/attributes",
        "ir/decode",
        "ir/dtypes",
        "ir/encode",
        "ir/external",
        "ir/files",
        "ir/objects",
        "ir/payloads",
        "ir/protos",
        "ir/reading",
        "ir/sizes",
        "ir/wire",
    ),
    "tests/techniques/pruning/test_coupling.py": (
        "graph/shapes/inference",
        "graph/shapes/inferred",
        "graph/shapes/known",
        "graph/shapes/products",
        "techniques/pruning/axes/kept",
        "techniques/pruning/axes/mixed",
        "techniques/pruning/axes/moved",
        "techniques/pruning/axes/place",
        "techniques/pruning/axes/reshaped",
        "techniques/pruning/axes/rules",
        "techniques/pruning/axes/sized",
        "techniques/pruning/component",
        "techniques/pruning/groups",
        "techniques/pruning/proof",
        "techniques/pruning/readers",
        "techniques/pruning/removal",
        "techniques/pruning/units",
    ),
    "tests/techniques/quantization/test_kmeans.py": ("techniques/quantization/palette",),
    "tests/passes/test_code.py": ("techniques/coding/layer",),
    "tests/passes/test_palette.py": ("techniques/quantization/emit/lookup", "techniques/quantization/indexed"),
    "tests/passes/test_prune.py": (
        "techniques/pruning/choice",
        "techniques/pruning/repair",
    ),
    "tests/passes/test_canonical.py": (
        "techniques/canonical/affine",
        "techniques/canonical/folding",
        "techniques/canonical/hard_sigmoid",
        "techniques/canonical/kernel_forms",
        "graph/operators",
    ),
    "tests/passes/test_lowrank.py": (
        "contract/bargain",
        "measure/probes",
        "techniques/lowrank/choice",
        "techniques/lowrank/plan",
        "linear/select",
        "linear/chains",
    ),
    "tests/passes/test_few_rows.py": ("techniques/lowrank/unseen",),
    "tests/passes/test_depthwise.py": ("techniques/lowrank/separable",),
    "tests/techniques/lowrank/test_forms.py": (
        "linear/fitting",
        "linear/layers",
    ),
    "tests/techniques/quantization/test_search.py": (
        "contract/bench",
        "techniques/quantization/precision",
        "techniques/quantization/apply",
        "techniques/quantization/plan",
        "techniques/quantization/words",
    ),
    "tests/passes/test_bits.py": ("techniques/quantization/lowbits",),
    "tests/passes/test_float32.py": ("engine/implied", "techniques/floats/widened"),
    "tests/passes/test_int8_runtime.py": ("techniques/quantization/audit",),
    "tests/techniques/quantization/emit/test_emit.py": (
        "techniques/quantization/emit/dynamic",
        "techniques/quantization/emit/static",
        "techniques/quantization/emit/stored",
        "techniques/quantization/emit/weights",
    ),
    "tests/statistics/test_sweep.py": (
        "statistics/accumulate",
        "statistics/histogram",
        "statistics/measured",
        "statistics/moments",
        "statistics/needs",
        "statistics/store",
    ),
    "tests/linear/test_refit.py": ("statistics/paired",),
    "tests/training/rules/test_rules.py": (
        "training/gradient",
        "training/known",
        "training/rules/activations",
        "training/rules/arithmetic",
        "training/rules/layers",
        "training/rules/normalization",
        "training/rules/quantized",
        "training/rules/reductions",
        "training/rules/shapes",
        "training/rules/table",
        "training/rules/windows",
        "training/tape",
    ),
    "tests/training/test_steps.py": (
        "training/blocks",
        "training/data",
        "training/fit",
        "training/losses",
        "training/mixing",
        "training/slices",
    ),
    "tests/passes/test_tune.py": ("training/tuning",),
    "tests/engine/test_distill.py": ("cli/distill", "training/capture"),
    "tests/report/test_terminal.py": (
        "report/tables",
        "words",
    ),
    "tests/report/test_run.py": (
        "measure/answers",
        "measure/cost",
        "plain",
    ),
    "tests/report/pages/test_page.py": (
        "report/pages/figures",
        "report/pages/picture",
    ),
    "tests/integrations/test_integrations.py": (
        "integrations/onnx_ir",
        "integrations/torch",
    ),
    "tests/analysis/test_check.py": ("cli/check",),
    "tests/targets/test_profiles.py": ("cli/targets", "targets/processor", "targets/target"),
    "tests/test_public_api.py": ("lazy",),
    "tests/engine/test_step.py": ("graph/opset",),
}
"""Test files of several modules, which can only be tested well together."""
UNTESTED = {
    "arrays": "names of types",
}
"""Modules that do nothing a test could see, and what they hold."""


def modules() -> set[str]:
    found = (path.relative_to(ROOT / "onnxsqueeze") for path in (ROOT / "onnxsqueeze").rglob("*.py"))
    return {str(path.with_suffix("")) for path in found if not path.name.startswith("__") and path.parts[0] != "passes"}


def test_no_file_is_long_but_those_that_were() -> None:
    files = [path for name in ("onnxsqueeze", "passes", "tests") for path in (ROOT / name).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {name for name, lines in lengths.items() if lines > MOST and not name.startswith("onnxsqueeze/passes/")}

    assert long - LONG == set()
    assert LONG - long == set(), "these are short now: take them off the list"


def test_every_module_has_its_test_file() -> None:
    own = {name for name in modules() if (ROOT / "tests" / name).with_name(f"test_{Path(name).name}.py").is_file()}
    shared = {name for names in TOGETHER.values() for name in names}

    assert modules() - own - shared - set(UNTESTED) == set()
    assert (shared | set(UNTESTED)) - modules() == set()
    assert [name for name in TOGETHER if not (ROOT / name).is_file()] == []


def test_every_pass_has_its_test_file() -> None:
    passes = {path.stem for path in (ROOT / "passes").glob("*.py")} - {"__init__"}

    assert {name for name in passes if not (ROOT / f"tests/passes/test_{name}.py").is_file()} == set()
