from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from counted_calls import calls
from onnx import helper, numpy_helper

from onnxsqueeze import diff, inspect_model, squeeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.ir.files import load
from onnxsqueeze.report.pages.page import diff_page, inspection_page, report_page
from onnxsqueeze.report.pages.picture import BOXES, Picture, pictures

MODELS = Path(__file__).parents[3] / "models"
MODEL = MODELS / "resnet.onnx"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page() -> str:
    result = squeeze(MODEL, "int8", few())
    original = load(MODEL)
    return report_page(result.report, original, result.graph, "onnxsqueeze -p int8")


@pytest.fixture(scope="module")
def differing() -> str:
    a, b = load(MODEL), squeeze(MODEL, "int8", few(), validate="none").graph
    return diff_page(diff(a, b, few()), a, b, "onnxsqueeze diff")


def test_a_page_is_one_file_that_asks_nothing_of_the_network(page: str, differing: str) -> None:
    for text in (page, differing, inspection_page(inspect_model(MODEL), "onnxsqueeze inspect")):
        found = Elements(text)

        assert not found.links
        assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", "".join(found.styles))
        assert text.startswith("<!doctype html>")


def test_the_report_opens_with_the_verdict_and_ends_with_the_command(page: str) -> None:
    text = Elements(page).text

    assert re.search(r"The model is \d\.\d+× smaller", text)
    assert text.index("smaller") < text.index("file size") < text.index("What changed") < text.index("Layers by gain")
    assert text.rstrip().endswith("onnxsqueeze -p int8")


def test_the_diff_tells_where_the_error_is_born(differing: str) -> None:
    assert "The error is born at" in Elements(differing).text


def test_names_cannot_break_out_of_the_page() -> None:
    evil = "</script><script>alert(1)</script>"
    model = onnx.load(MODELS / "mlp.onnx")
    for node in model.graph.node:
        node.input[:] = [evil + name if name.endswith("output_0") else name for name in node.input]
        node.output[:] = [evil + name if name.endswith("output_0") else name for name in node.output]
    del model.graph.value_info[:]
    a, b = load(model), squeeze(model, "int8", validate="none").graph

    text = diff_page(diff(a, b), a, b, evil)

    assert "alert(1)" in text
    assert "<script>alert(1)" not in text


def test_the_data_of_the_picture_names_every_node_and_every_change(page: str) -> None:
    data = json.loads(re.search(r'id="graphs">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]

    before = {node[0] for node in data["sides"][0]["nodes"]}
    graph = onnx.load(MODEL).graph
    assert {node.output[0] for node in graph.node if node.op_type != "Constant"} <= before
    assert {node[3] for side in data["sides"] for node in side["nodes"]} >= set(range(len(data["changes"])))


def test_unchanged_nodes_share_boxes_and_no_cycle_arises() -> None:
    for one, two in (("resnet", "int8"), ("dwcnn", "clean"), ("dwcnn", "int8")):
        a = load(MODELS / f"{one}.onnx")
        b = squeeze(MODELS / f"{one}.onnx", two, validate="none").graph

        for picture in pictures(a, b, diff(a, b)):
            assert len(picture.boxes) < len(picture.nodes)
            assert sorted(i for box in picture.boxes for i in box.nodes) == list(range(len(picture.nodes)))
            assert is_acyclic(picture)


def test_a_graph_of_5000_nodes_becomes_a_picture_of_few_boxes() -> None:
    before, after = chain(5000), chain(5000)
    for i in range(0, 1250, 3):
        tensor = after.graph.initializer[i]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    a, b = load(before), load(after)

    found: list[Picture] = []
    made = calls(lambda: found.extend(pictures(a, b, diff(a, b))))

    assert made < 5_000 * 3_000
    for picture in found:
        assert len(picture.boxes) <= BOXES
        assert is_acyclic(picture)


def test_a_run_without_a_result_has_a_page_without_a_picture() -> None:
    result = squeeze(MODELS / "mlp.onnx", "int8", validate="none")

    text = report_page(result.report, load(MODELS / "mlp.onnx"), None, "")

    assert "What changed" not in text
    assert "file size" in text


def test_histograms_and_curves_are_drawn_where_sites_carry_them() -> None:
    result = squeeze(MODELS / "mlp.onnx", "int8", validate="none")
    original = load(MODELS / "mlp.onnx")
    step = result.report.steps[-1]
    detail: dict[str, object] = {
        "histogram": {"low": -1.0, "high": 3.0, "counts": [1, 5, 2, 0]},
        "range": [-0.5, 2.5],
        "curve": {"x": [1, 2, 4], "y": [0.5, 0.2, 0.1], "chosen": 4, "label": "steps", "note": "block 1 of 2"},
    }
    site = replace(step.done[0], detail=detail)
    report = replace(result.report, steps=(replace(step, done=(site,)),))

    found = Elements(report_page(report, original, result.graph, ""))

    assert found.classes.count("count") == 4
    assert found.classes.count("mark") == 3
    assert found.classes.count("curve") == 1
    assert "chosen 4 steps" in found.text
    assert "block 1 of 2" in found.text
    assert "chosen -0.5 … 2.5" in found.text


@pytest.mark.parametrize("pipeline", ["prune{ratio=0.6}", "lowrank{ratio=0.4}"])
def test_the_error_over_what_a_pass_may_take_is_drawn_with_its_choice(pipeline: str) -> None:
    result = squeeze(MODEL, pipeline, validate="none")
    sites = result.report.steps[-1].done

    found = Elements(report_page(result.report, load(MODEL), result.graph, ""))

    assert found.classes.count("curve") == found.classes.count("mark") == len(sites) > 1
    for site in sites:
        curve: Any = site.detail["curve"]
        assert len(curve["x"]) == len(curve["y"]) <= 32
        assert curve["x"] == sorted(curve["x"])
        assert curve["x"][0] <= curve["chosen"] <= curve["x"][-1]
        assert site.error == pytest.approx(np.interp(curve["chosen"], curve["x"], curve["y"]), rel=0.2)
        assert site.action in found.text


def test_two_passes_at_one_layer_both_stand_in_the_report() -> None:
    result = squeeze(MODEL, "prune{ratio=0.6},int8", few(), validate="none")
    pruned = {site.key: site for step in result.report.steps if "prune" in step.spec for site in step.done}

    text = report_page(result.report, load(MODEL), result.graph, "")

    sides = json.loads(re.search(r'id="graphs">(.*?)</script>', text, re.S).group(1))["sides"]  # type: ignore[union-attr]
    told = {
        node[0]: [name for site in fact["sites"] for name in site]
        for node, fact in zip(sides[1]["nodes"], sides[1]["facts"], strict=True)
        if "sites" in fact
    }
    shown = Elements(text).text
    assert pruned
    for key, site in pruned.items():
        assert {"prune", "int8"} <= set(told[key])
        assert f"{site.detail['kept']} of {site.detail['units']}" in shown


def test_the_command_line_writes_pages_with_the_command_that_repeats_them(tmp_path: Path) -> None:
    small, page = tmp_path / "small.onnx", tmp_path / "page.html"
    model = str(MODELS / "mlp.onnx")

    for arguments in (
        [model, "-p", "int8", "--validate", "none", "-o", str(small), "--html", str(page)],
        ["diff", model, str(small), "--html", str(page)],
        ["inspect", model, "--html", str(page)],
    ):
        page.unlink(missing_ok=True)
        result = CliRunner().invoke(main, arguments)

        assert result.exit_code == (arguments[0] == "diff"), result.stderr
        assert Elements(page.read_text(encoding="utf-8")).text.rstrip().endswith(" ".join(["onnxsqueeze", *arguments]))


@pytest.mark.parametrize("option", ["-o", "model"])
def test_a_page_does_not_overwrite_a_model(option: str, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    shutil.copy(MODELS / "mlp.onnx", model)
    target = tmp_path / "o.onnx" if option == "-o" else model

    result = CliRunner().invoke(main, [str(model), "-p", "int8", "-o", str(tmp_path / "o.onnx"), "--html", str(target)])

    assert result.exit_code == 2
    assert "would overwrite" in result.stderr


# In a browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("selenium")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.filterwarnings("default")
def test_a_click_on_a_node_shows_its_numbers(browser: Any, differing: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(differing, encoding="utf-8")
    browser.set_window_size(1280, 2000)
    browser.get(path.as_uri())

    panels = []
    for box in browser.find_elements("css selector", "#graph-0 .box.replaced"):
        box.click()
        panels.append(browser.find_element("id", "panel").text)
        if "int8[" in panels[-1]:  # the first convolution stays in float
            break

    panel = panels[-1]
    assert "Conv + BatchNormalization" in panel
    assert "SQNR" in panel
    assert "int8[" in panel
    assert browser.find_elements("css selector", "#graph-1 .box.partner")
    browser.find_element("css selector", "#panel .open").click()
    assert "close its box again" in browser.find_element("id", "panel").text
    assert not browser.get_log("browser")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("width", [400, 1280])
def test_no_page_is_wider_than_the_window_in_light_and_dark(
    browser: Any, page: str, differing: str, width: int, tmp_path: Path
) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for text in (page, differing, inspection_page(inspect_model(MODEL), "")):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        seen = set()
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            browser.get(path.as_uri())
            paper = "return getComputedStyle(document.body).backgroundColor"
            seen.add(browser.execute_script(paper))
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            browser.find_element("id", "theme").click()
            seen.add(browser.execute_script(paper))
        assert len(seen) == 2
        assert not browser.get_log("browser")


def few() -> list[dict[str, Any]]:
    """Four feeds of eight digits."""
    samples = np.load(MODELS / "resnet.calib.npz")["input"]
    return [{"input": samples[8 * i : 8 * i + 8]} for i in range(4)]


class Elements(HTMLParser):
    """The visible text of a page, its styles, classes, and everything that it would load from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.styles, self.links, self.classes = "", [""], [""], [""]
        self._inside = ""
        self.links.clear()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.classes += [str(value) for name, value in attrs if name == "class"]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles.append(data)
        elif self._inside != "script":
            self.text += data


def is_acyclic(picture: Picture) -> bool:
    owner = {i: number for number, box in enumerate(picture.boxes) for i in box.nodes}
    return all(owner[one] <= owner[two] for one, two in picture.edges)


def chain(count: int) -> onnx.ModelProto:
    nodes, weights, x = [], [], "x"
    rng = np.random.default_rng(0)
    for i in range(count // 4):
        weights.append(numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
        nodes.append(helper.make_node("Sigmoid", [f"r{i}"], [f"s{i}"]))
        nodes.append(helper.make_node("Add", [f"s{i}", x], [f"a{i}"]))
        x = f"a{i}"
    values = [helper.make_tensor_value_info(name, 1, [1, 8]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
