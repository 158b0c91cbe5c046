"""The app as a person meets it: a browser, the model `tiny`, few steps. Skipped where there is no Chromium."""
import json
import os
import shutil
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed, so the app is not opened: apt-get install chromium")]
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed, so the app is not opened: pip install playwright")
expect = sync_api.expect
ARGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
CRISIS = "Nobody would miss me. I have said my goodbyes."   # invented


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A home of its own with an adapter that works, and one whose file is cut in half."""
    home = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENBOT_HOME", str(home))
        import torch
        from zenbot.adapters import add_lora, save_adapter
        from zenbot.models import load_model
        from zenbot.prompts import load_prompter
        torch.manual_seed(0)
        model = add_lora(load_model("tiny", torch.float32), r=4)
        for name, p in model.named_parameters():
            if "lora_B" in name: torch.nn.init.normal_(p, std=0.05)
        save_adapter(model, load_prompter("tiny"), home / "whole", "tiny")
        shutil.copytree(home / "whole", home / "damaged")
        weights = home / "damaged/adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        yield home
        from zenbot.runs import list_runs, stop_run
        for run in list_runs():
            if run["state"] == "running": stop_run(run["name"])


@pytest.fixture(scope="module")
def asked():
    """What the model of the chat was asked, for all tests."""
    return []


@pytest.fixture(scope="module")
def url(house, asked):
    import zenbot.app_chat as room
    from zenbot.app import launch_app
    inner = room.writer
    def spy(opened, **rules):
        def write(messages):
            asked.append(messages)
            return (f"Part {i} of it. " for i in range(20) if not time.sleep(0.25)) if "slowly" in messages[-1]["content"] else inner(opened, **rules)(messages)
        return write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "writer", spy)
        page = next(p for port in range(17860, 17900) if (p := _launched(launch_app, port)))
        yield page.local_url
        page.close()


def _launched(launch_app, port):
    try: return launch_app(port, wait=False)
    except ValueError: return None


@pytest.fixture(scope="module")
def browser(url):
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def requests():
    """The addresses of all that any page asked for."""
    return []


@pytest.fixture
def page(browser, url, requests):
    page = browser.new_page(viewport=dict(width=1200, height=1000))
    page.set_default_timeout(20_000)
    page.on("request", lambda r: requests.append(r.url))
    page.goto(url)
    expect(page.locator("#train-table")).to_contain_text("run", ignore_case=True)
    yield page
    page.close()


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def choose(page, field, value):
    box = page.locator(f"#{field} input")
    box.fill(value)
    box.press("Enter")
    box.blur()


def send(page, text):
    page.locator("#chat-box textarea").fill(text)
    page.locator("#chat-send").click()


def test_a_crisis_message_gets_its_reply_without_any_model(page, asked):
    tab(page, "Chat")
    choose(page, "chat-model", "no/such/model")
    before = len(asked)
    send(page, CRISIS)
    expect(page.locator("#chat")).to_contain_text("tier 3 of 4, route crisis")
    expect(page.locator("#chat")).to_contain_text("findahelpline.com")
    expect(page.locator("#chat-status [role=status]")).to_have_text("Answered by the guard.")
    assert len(asked) == before, "the model was asked"
    send(page, "I lie awake until four.")   # still with somebody who was in danger
    expect(page.locator("#chat")).to_contain_text("no model was asked", use_inner_text=True)


def test_chat_streams_and_stops_and_exports_and_clears(page, asked):
    tab(page, "Chat")
    choose(page, "chat-model", "tiny")
    page.locator("#chat-load").click()
    expect(page.locator("#chat-status")).to_contain_text("Loaded: tiny")
    send(page, "Tell me slowly how sleep works.")
    expect(page.locator("#chat")).to_contain_text("Part 1 of it.")
    assert "Part 19" not in page.locator("#chat").inner_text(), "nothing was shown before all was written"
    page.locator("#chat-stop").click()
    expect(page.locator("#chat")).to_contain_text("(stopped)")
    time.sleep(1)
    shown = page.locator("#chat").inner_text()
    time.sleep(1)
    assert page.locator("#chat").inner_text() == shown and "Part 19" not in shown
    with page.expect_download() as got: page.locator("#chat-export").click()
    saved = json.loads(Path(got.value.path()).read_text())
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"] and saved["messages"][0]["guard"]["route"] == "support" and "Part 1 of it." in saved["messages"][1]["content"]
    page.locator("#chat-clear").click()
    expect(page.locator("#chat")).not_to_contain_text("Part 1")


def test_what_a_person_writes_is_text(page):
    tab(page, "Chat")
    choose(page, "chat-model", "tiny")
    text = "I wake <script>window.hacked = 1</script> <img src=x onerror='window.hacked = 1'> ![](https://example.org/x.png) at three"
    send(page, text)
    expect(page.locator("#chat-status [role=status]")).to_contain_text("Answered")
    expect(page.locator("#chat")).to_contain_text("<script>window.hacked = 1</script>")
    expect(page.locator("#chat")).to_contain_text("![](https://example.org/x.png)")
    assert page.evaluate("window.hacked") is None and not page.locator("#chat img[src*=example]").count()


def test_an_answer_again_and_the_base_beside_it(page, house):
    tab(page, "Chat")
    choose(page, "chat-model", str(house / "whole"))
    send(page, "I lie awake.")
    expect(page.locator("#chat-status [role=status]")).to_have_text("Answered.")
    page.locator("#chat-retry").click()
    expect(page.locator("#chat-status [role=status]")).to_have_text("Answered.")
    page.locator("#chat-ask").click()
    expect(page.locator("#chat-other")).to_contain_text("Its base, tiny")
    choose(page, "chat-model", "tiny")
    page.locator("#chat-ask").click()
    expect(page.get_by_text("is a base itself")).to_be_visible()


def test_a_damaged_adapter_is_an_error_and_nothing_is_loaded(page, house):
    tab(page, "Assess")
    for folder, said in (("damaged", "Not loaded."), ("whole", "Loaded:"), ("damaged", "damaged")):
        choose(page, "assess-model", str(house / folder))
        page.locator("#assess-load").click()
        expect(page.locator("#assess-proof [role=status]")).to_contain_text(said)
    assert "Loaded:" not in page.locator("#assess-proof").inner_text() and "SHA-256" not in page.locator("#assess-proof").inner_text()
    page.locator("#assess-measure").click()   # nor is it measured
    expect(page.locator(".toast-wrap, .toast-body").first).to_contain_text("damaged")


def test_assessment_with_intervals_and_a_paired_comparison(page, house):
    tab(page, "Assess")
    choose(page, "assess-model", str(house / "whole"))
    page.locator("#assess-load").click()
    expect(page.locator("#assess-proof")).to_contain_text("differs from base by")
    choose(page, "assess-against", "tiny")
    for slider, value in (("assess-n", "6"), ("assess-new", "8")):
        page.locator(f"#{slider} input[type=number]").fill(value)
        page.locator(f"#{slider} input[type=number]").blur()
    page.locator("#assess-measure").click()
    cells = page.locator("#assess-out table").first
    expect(cells).to_contain_text("response loss", timeout=60_000)
    row = cells.locator("tbody tr").first.locator("td").all_inner_texts()
    assert len(row) == 3 and all(" [" in v for v in row) and "p = " in row[2] and row[2].rsplit(": ")[-1] in ("better", "worse", "tie")
    expect(page.locator("#assess-out")).to_contain_text("6 of ")


def test_perturbations_and_the_guard_laboratory(page):
    tab(page, "Assess")
    choose(page, "assess-model", "tiny")
    page.get_by_role("tab", name="Perturb a prompt").click()
    page.locator("#perturb-go").click()
    expect(page.locator("#perturb-out")).to_contain_text("as typed", timeout=60_000)
    expect(page.locator("#perturb-out")).to_contain_text("control")
    page.get_by_role("tab", name="Guard laboratory").click()
    page.locator("#guard-text textarea").fill(CRISIS + " <b>x</b>")
    page.locator("#guard-go").click()
    expect(page.locator("#guard-out [role=status]")).to_contain_text("Tier 3 of 4")
    expect(page.locator("#guard-out mark").first).to_be_visible()
    expect(page.locator("#guard-out")).to_contain_text("<b>x</b>")


def rows_file(house) -> Path:
    from zenbot.core import package_dir
    file = house / "mine.jsonl"
    file.write_text("\n".join((package_dir() / "sample/counsel.jsonl").read_text().splitlines()[:40]) + '\n{"prompt": "no answer"}\n')
    return file


def test_training_from_upload_to_a_finished_run_with_a_stop_on_the_way(page, house, browser, url):
    from zenbot.checkpoints import newest_checkpoint
    from zenbot.core import read_json
    page.locator("#train-profile input").click()
    page.get_by_role("option", name="smoke", exact=True).click()
    expect(page.locator("#train-most input")).to_have_value("64")   # the fields have followed
    page.locator("#train-file input[type=file]").set_input_files(rows_file(house))
    expect(page.locator("#train-audit")).to_contain_text("Audit", timeout=60_000)
    expect(page.locator("#train-labels")).to_contain_text("every answer is learned to its end", timeout=60_000)
    page.locator("#train-name textarea, #train-name input").fill("../x")
    page.locator("#train-start").click()
    expect(page.get_by_text("A run's name has letters")).to_be_visible(timeout=60_000)
    page.locator("#train-name textarea, #train-name input").fill("mine")
    page.get_by_label("A: r 4").check()
    page.get_by_text("Every parameter of stage 2").click()
    expect(page.locator("#p-r input")).to_have_value("4")
    page.locator("#p-max_steps input").fill("60")
    page.locator("#p-eval_steps input").fill("20")
    page.locator("#train-plan").click()
    expect(page.locator("#train-said")).to_contain_text("It fits", timeout=60_000)
    page.locator("#train-start").click()
    expect(page.locator("#train-said")).to_contain_text("mine has started", timeout=60_000)
    expect(page.locator("#train-view .numbers")).to_contain_text("stage2: step", timeout=120_000)
    expect(page.locator("#train-view .numbers")).to_contain_text("tokens/s")
    page.locator("#train-stop").click()
    expect(page.locator("#train-view")).to_contain_text("mine is stopped", timeout=60_000)
    saved = newest_checkpoint(next((house / "runs/mine/checkpoints").glob("stage2-*")))
    at = read_json(saved / "trainer_state.json")["global_step"]
    assert 0 < at < 60
    page.locator("#train-resume").click()
    expect(page.locator("#train-said")).to_contain_text("goes on")
    page.close()   # the run does not mind
    later = browser.new_page()
    later.goto(url)
    expect(later.locator("#train-view")).to_contain_text("mine is finished", timeout=120_000)
    expect(later.locator("#train-view svg polyline.loss")).to_have_count(1)
    log = read_json(house / "runs/mine/results/training_log.json")
    assert log[-1]["steps"] == 60 and log[-1]["rows"] > 20
    assert read_json(house / "runs/mine/run.json")["stages"]["stage2"]["parameters"]["targets"] == ["q_proj", "v_proj"]
    tab(later, "Assess")
    choose(later, "assess-model", "runs/mine/lora_adapters")
    later.locator("#assess-load").click()
    expect(later.locator("#assess-proof")).to_contain_text("an adapter on its base")
    tab(later, "Runs")
    expect(later.locator("#runs-summary")).to_contain_text("mine is finished")
    expect(later.locator("#runs-frame iframe")).to_have_count(1)
    later.close()


LOOKS = {"light": dict(viewport=dict(width=1200, height=1000), color_scheme="light"), "dark": dict(viewport=dict(width=1200, height=1000), color_scheme="dark"),
         "phone": dict(viewport=dict(width=390, height=844), color_scheme="light")}
UNNAMED = """() => [...document.querySelectorAll('input:not([type=hidden]):not([type=file]), textarea, select, button')].filter(e => e.offsetParent &&
 !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length || e.title || e.textContent.trim())).map(e => e.outerHTML.slice(0, 160))"""


@pytest.mark.parametrize("look", LOOKS)
def test_every_tab_is_readable_and_labelled(browser, url, requests, look, tmp_path):
    folder = Path(os.environ.get("ZENBOT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(**LOOKS[look])
    page.on("request", lambda r: requests.append(r.url))
    page.goto(url)
    for name in ("Train", "Assess", "Chat", "Runs"):
        tab(page, name)
        if name == "Chat": send(page, CRISIS); expect(page.locator("#chat")).to_contain_text("route crisis")
        if name == "Assess":
            page.locator("#assess-load").click()
            expect(page.locator("#assess-proof [role=status]")).to_contain_text("oaded")
        time.sleep(1)
        page.screenshot(path=folder / f"{name.lower()}-{look}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= LOOKS[look]["viewport"]["width"], f"{name} is wider than the screen"
        assert not page.evaluate(UNNAMED), f"inputs of {name} have no label"
    page.close()


def test_no_request_has_left_this_machine(page, requests, url):
    assert len(requests) > 20
    assert {urlparse(r).hostname for r in requests if not r.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert "default-src 'self'" in page.request.get(url).headers["content-security-policy"]
