"""The gallery as a reader's browser runs it: the extra `browser`, a Chromium, and LiteRT.js from npm's registry."""

import functools
import io
import json
import re
import shutil
import tarfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.data import read_image
from factorizenet_tf.files import cache_folder
from factorizenet_tf.zoo import gallery
from factorizenet_tf.zoo.store import fetch

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no Playwright here: pip install factorizenet_tf[browser]"
)
expect = playwright.expect
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium"),
]
DIGITS = "fnet-1x2.2x2-l1-x0.5-int8"
AXE = "axe-core", "4.14.1", "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
COUNT = len(fnet.zoo.list(precision="int8", dataset="cifar10"))  # of the package's own nets
RESULTS = "#results[aria-busy=false] article"


@pytest.fixture(scope="module")
def site(zoo, tmp_path_factory):
    """The address of a gallery of the package's own zoo and the session's, and its folder."""
    folder = tmp_path_factory.mktemp("sites") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTORIZENET_ZOO", str(zoo))
        try:
            gallery.build_gallery(folder)
        except ConnectionError as error:
            pytest.skip(str(error))
    server = gallery.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(gallery._Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/", folder=folder)
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def launch():
    """Starts Chromium with further arguments."""
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-gpu"]  # root in a container has no sandbox
        yield lambda *more: started.chromium.launch(executable_path=BROWSER, args=[*arguments, *more])


@pytest.fixture(scope="module")
def chromium(launch):
    browser = launch()
    yield browser
    browser.close()


@pytest.fixture
def open_page(chromium, site):
    """Opens the gallery in a new window; what goes wrong in it, and what it asks of other hosts, fails the test."""
    contexts, troubles = [], []

    def open_it(browser=chromium, wait=RESULTS, before=lambda page: None, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((site.url, "blob:")) or troubles.append(asked.url))
        before(page)
        page.goto(site.url)
        page.wait_for_selector(wait)
        return page

    open_it.troubles = troubles
    yield open_it
    for context in contexts:
        context.close()
    assert troubles == []


def picture(shape, kind="PNG"):
    """A file of an image with edges, slopes and noise, and its name as a browser is given it."""
    height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 60, shape)
    image = (
        (x * 5 // 4 + y * 3)[..., None] + np.arange(channels) * 70 + 90 * ((x // 9 + y // 7) % 2)[..., None]
    ) % 196 + noise
    content = io.BytesIO()
    Image.fromarray(image.astype(np.uint8).squeeze()).save(content, kind)
    return {"name": f"a.{kind.lower()}", "mimeType": f"image/{kind.lower()}", "buffer": content.getvalue()}


def give(page, file):
    """Choose an image and wait until the nets have answered; gives the logits by net, as integers."""
    page.evaluate("document.querySelector('#results').replaceChildren()")
    page.set_input_files("#file", file)
    page.wait_for_selector(RESULTS)
    cards = page.locator("#results article").all()
    return {
        card.get_attribute("data-net"): list(map(int, card.get_attribute("data-logits").split(","))) for card in cards
    }


def expected(name, file, zoo_dir=None):
    net = fnet.zoo.load(name, "tflite", zoo_dir=zoo_dir)
    scale, zero_point = net.output_quantization
    logits = net.predict(read_image(file["buffer"], net.input_shape)[None])[0]
    return np.round(logits / scale).astype(int) + zero_point


def answered(pattern, **answer):
    """What a page is told before it is opened: how requests of a pattern are answered."""
    return lambda page: page.route(pattern, lambda route: route.fulfill(**answer))


def choose(page, dataset):
    page.evaluate("document.querySelector('#results').replaceChildren()")
    page.select_option("#dataset", dataset)
    page.wait_for_selector(RESULTS)


def test_every_net_gives_the_logits_of_int8_model(open_page, zoo):
    page = open_page()
    page.click("#try-title ~ .try summary >> text=Which nets run")
    for box in page.locator("#picks input").all():
        box.check()
    expect(page.locator(RESULTS)).to_have_count(COUNT, timeout=30_000)
    for shape, kind in (((32, 32, 3), "PNG"), ((131, 200, 3), "PNG"), ((20, 11, 1), "PNG"), ((32, 32, 3), "JPEG")):
        file = picture(shape, kind)
        found = give(page, file)
        assert found.keys() == set(fnet.zoo.names()) & found.keys()
        assert len(found) == COUNT
        for name, logits in found.items():
            wanted = expected(name, file)
            is_exact = shape == (32, 32, 3) and kind == "PNG"  # who decodes a JPEG rounds, and so does who resizes
            assert np.abs(np.subtract(logits, wanted)).max() <= (0 if is_exact else 1)
            assert np.argmax(logits) == np.argmax(wanted)
    choose(page, "digits")
    for shape in ((16, 16, 1), (8, 8, 1), (60, 45, 3)):
        file = picture(shape)
        assert give(page, file) == {DIGITS: expected(DIGITS, file, zoo).tolist()}


def test_sample_images_are_of_the_nets_classes_and_none_of_others(open_page):
    def titles(page):
        return page.eval_on_selector_all("#samples img", "all => all.map((each) => each.alt)")

    def of_screws(route):
        data = route.fetch().json()
        nets = [net | {"class_names": ["screw", "nut"]} for net in data["nets"]]
        route.fulfill(json=data | {"nets": nets})

    page = open_page()
    assert titles(page) == ["A tabby cat's face", "A drawn ship", "A drawn airplane", "A drawn truck"]
    choose(page, "digits")
    assert titles(page) == ["A handwritten 3", "A handwritten 5", "A handwritten 8"]
    asks = "#caption:text('Choose, drop, paste, photograph or draw an image.')"
    page = open_page(wait=asks, before=lambda page: page.route("**/gallery.json", of_screws))
    assert titles(page) == []


def test_images_are_fitted_as_the_package_does_it(open_page):
    page = open_page()
    script = """async ([bytes, shape, resize]) => {
        const { readImage, fitted } = await import("./pixels.js");
        return Array.from(fitted(await readImage(new Blob([new Uint8Array(bytes)])), shape, resize));
    }"""
    for size in ((50, 81, 3), (81, 50, 3), (7, 5, 3), (96, 96, 3)):
        for shape in ((32, 32, 3), (24, 40, 1), (96, 96, 3)):
            for resize in ("stretch", "crop", "pad"):
                content = picture(size)["buffer"]
                found = page.evaluate(script, [list(content), shape, resize])
                wanted = read_image(content, shape, resize).astype(int)
                assert np.abs(np.reshape(found, shape) - wanted).max() <= (resize == "stretch")


def test_images_are_drawn_pasted_and_dropped(open_page):
    page = open_page()
    choose(page, "digits")
    page.click("#draw")
    assert page.locator("#results article").count() == 0
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 140, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 240, steps=5)
    page.mouse.up()
    page.wait_for_selector(RESULTS)
    assert page.inner_text("#caption") == "Your drawing"
    for event, carrier, title in (("paste", "clipboardData", "Pasted image"), ("drop", "dataTransfer", "x.png")):
        file = picture((40, 30, 3))
        page.evaluate(
            """([bytes, event, carrier]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "x.png"));
                const kind = event === "paste" ? ClipboardEvent : DragEvent;
                document.dispatchEvent(new kind(event, { [carrier]: data, bubbles: true, cancelable: true }));
            }""",
            [list(file["buffer"]), event, carrier],
        )
        expect(page.locator("#caption")).to_have_text(f"{title}, 30 x 40 pixels")


def test_what_is_no_image_or_too_large_a_one_says_what_to_do(open_page):
    page = open_page()
    whole = picture((32, 32, 3))
    huge = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(huge, "PNG")
    for buffer, said in (
        (b"text", "That is no image that this browser can read"),
        (whole["buffer"][:60], "That is no image that this browser can read"),
        (huge.getvalue(), "The image has 10000 x 9000 pixels"),
    ):
        page.set_input_files("#file", whole | {"buffer": buffer})
        expect(page.locator("#trouble")).to_contain_text(said)
        assert "give a PNG, JPEG or WebP of at most 89 megapixels" in page.inner_text("#trouble")
    give(page, whole)
    assert page.locator("#trouble").is_hidden()
    large = io.BytesIO()
    Image.new("L", (5_000, 4_000), 255).save(large, "PNG")
    give(page, whole | {"buffer": large.getvalue()})
    assert "5000 x 4000 pixels, shrunk by the browser first" in page.inner_text("#caption")


def test_filters_leave_what_the_zoo_leaves(open_page):
    page = open_page()
    names = lambda: page.locator("#nets tbody th").all_inner_texts()  # noqa: E731
    assert set(names()) == {card.name for card in fnet.zoo.list(precision="int8", dataset="cifar10")}
    page.fill("[name=macs]", "9")
    page.fill("[name=ram_bytes]", "31")
    limits = {"max_macs": 9_000_000, "max_ram_bytes": 31_000}
    assert set(names()) == {card.name for card in fnet.zoo.list(precision="int8", dataset="cifar10", **limits)}
    assert fnet.zoo.best(dataset="cifar10", **limits).name in page.inner_text("#best")
    assert "factorizenet list --best --dataset cifar10 --max-macs 9000000 --max-ram-bytes 31000" in page.inner_text(
        "#best"
    )
    assert page.locator("#chart .point").count() == COUNT
    assert page.locator("#chart .point.out").count() == COUNT - len(names())
    page.click("text=No limits")
    expect(page.locator("#nets tbody tr")).to_have_count(COUNT)
    page.click("#nets thead button >> text=bytes")
    sizes = [card.size_bytes for card in map(fnet.zoo.card, names())]
    assert sizes == sorted(sizes)
    page.select_option("[name=cost]", "ram_bytes")
    page.select_option("[name=precision]", "float")
    assert set(names()) == {card.name for card in fnet.zoo.list(precision="float", dataset="cifar10")}
    assert "No float net here has a number for RAM" in page.inner_text("#chart")
    page.fill("[name=latency_ms]", "1")
    assert "No net is within these limits; raise one." in page.inner_text("#best")
    choose(page, "digits")
    assert page.inner_text("#summary").startswith("1 int8 and 1 float nets of digits")


def test_a_net_is_shown_by_keyboard_and_two_are_compared(open_page):
    page = open_page()
    page.locator("#chart .point[aria-label^=baseline-resnet8-int8]").focus()
    assert page.inner_text("#readout").startswith("baseline-resnet8-int8: 84.12 %, 12.5 M")
    page.keyboard.press("Enter")
    expect(page.locator("#shown")).to_have_value("baseline-resnet8-int8")
    card = fnet.zoo.card("baseline-resnet8-int8")
    text = page.inner_text("#card")
    assert all(
        part in text
        for part in (f"{card.macs:,}", f"{card.accuracy:.2%}".replace("%", " %"), card.command, card.licence)
    )
    for link in page.locator("#card a").all():
        assert page.request.get(link.evaluate("link => link.href")).ok
    page.select_option("#first", "fnet-l0-int8")
    page.select_option("#second", "fnet-l6-int8")
    assert "x 0.16" in page.inner_text("#comparison tr:has-text('MACs')")
    assert page.locator("#comparison table").nth(1).locator("tr", has_text="stage2_block1_spatial").count() == 1


def test_a_broken_index_a_missing_net_and_a_browser_without_simd_say_what_to_do(open_page, launch, site):
    for body, said in (("{", "gallery.json cannot be read"), ('{"nets": []}', "it has no nets")):
        page = open_page(wait="#notice", before=answered("**/gallery.json", body=body))
        expect(page.locator("#notice")).to_contain_text(said)
        assert "build the page again: factorizenet gallery --out FOLDER" in page.inner_text("#notice")
    data = json.loads((site.folder / "gallery.json").read_text())
    data["nets"] = [net for net in data["nets"] if net["precision"] == "float"]
    page = open_page(wait="#trouble", before=answered("**/gallery.json", body=json.dumps(data)))
    assert "no int8 net of this data set; nothing can run here" in page.inner_text("#trouble")
    assert page.locator("#chart .point").count() == page.locator("#nets tbody tr").count() == COUNT
    page = open_page(before=answered("**/nets/fnet-fast-int8.tflite", status=404))
    text = page.inner_text("#results")
    assert "nets/fnet-fast-int8.tflite does not run (the server answers 404); build the page again." in text
    assert "fnet-deep-int8" in text  # the others run
    assert all("404" in trouble for trouble in open_page.troubles)
    open_page.troubles.clear()
    browser = launch(
        "--js-flags=--no-enable-ssse3 --no-enable-sse4-1 --no-enable-sse4-2 --no-enable-avx --no-enable-avx2"
    )
    page = open_page(browser, wait="#trouble")
    assert "no WebAssembly with SIMD" in page.inner_text("#trouble")
    assert page.locator("#nets tbody tr").count() == COUNT
    browser.close()


def test_opened_as_a_file_it_says_how_to_serve_it(chromium, site):
    page = chromium.new_page()
    page.goto((site.folder / "index.html").as_uri())
    page.wait_for_timeout(1_600)  # it shows late, else each reader would see it flash
    assert page.locator("#notice").is_visible()
    assert "factorizenet gallery --serve" in page.inner_text("#notice")
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(open_page, theme, width):
    name, version, sha256 = AXE
    tarball = fetch(f"{gallery.REGISTRY}/{name}/-/{name}-{version}.tgz", cache_folder() / "files" / sha256, sha256)
    with tarfile.open(tarball) as archive:
        axe = archive.extractfile("package/axe.min.js").read().decode()
    page = open_page(color_scheme=theme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page.add_script_tag(content=axe)
    for details in page.locator("details").all():
        details.evaluate("details => details.open = true")
    found = page.evaluate("axe.run()")["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not re.search(r"undefined|NaN|\[object", page.inner_text("body"))
