"""The dashboard in a real browser."""

import time
from contextlib import ExitStack
from typing import Any

import pytest

from calls import Person, model_file
from dashboard.browser import chromium, page_of
from dashboard.conftest import People
from dashboard.visitor import Served
from fedround.v1 import control_pb2, round_pb2, training_pb2, user_pb2

__all__ = ["chromium"]

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
MAX_PAGE_BYTES = 150_000
"""Bytes of everything that the first page of a training loads, uncompressed."""
SHIFTS = "() => { window.shifts = 0; new PerformanceObserver((list) => { for (const one of list.getEntries())"
SHIFTS += " window.shifts += one.value; }).observe({ type: 'layout-shift', buffered: false }); window.same = true; }"


def evaluated(people: People, versions: int = 2, **spec: Any) -> str:
    """A training with some versions and their metrics; its current round asks both clients for updates."""
    training_id = people.training(target_num_updates=versions + 1, metric_names=["accuracy"], **spec)
    people.actor.start(training_id)
    for version in range(versions):
        for number, client in enumerate(people.clients):
            client.submit(training_id, model_file(version + number), 2 * version, num_examples=10)
        wait_for_round(people, training_id, 2 * version + 1)
        for client in people.clients:
            report = {"training_id": training_id, "round": 2 * version + 1, "num_examples": 5}
            request = round_pb2.SubmitMetricsRequest(metrics={"accuracy": 0.5 + version / 10}, **report)
            client.rounds.SubmitMetrics(request)
        wait_for_round(people, training_id, 2 * version + 2)
    return training_id


def wait_for_round(people: People, training_id: str, number: int) -> None:
    for event in people.actor.subscribe(training_id):
        if event.HasField("round_started") and event.round_started.round == number:
            return


def expect(locator: Any) -> Any:
    from playwright import sync_api

    return sync_api.expect(locator)


def state_of(people: People, training_id: str) -> training_pb2.Training:
    return people.actor.get(training_id)


def test_a_page_follows_a_round_without_being_loaded_anew(chromium: Any, served: Served, people: People) -> None:
    training_id = evaluated(people, name="followed")
    with page_of(chromium, served.url, people.viewer.token) as page:
        page.get_by_role("link", name="followed").click()
        page.wait_for_selector("#connection.on")
        page.wait_for_selector(".chart")
        page.get_by_text("0 of 2 updates").wait_for()
        page.evaluate(SHIFTS)
        people.clients[0].submit(training_id, model_file(9), 4, num_examples=10)
        page.get_by_text("1 of 2 updates").wait_for()
        page.locator(".people li", has_text="site 1").get_by_text("arrived").wait_for()
        people.clients[1].submit(training_id, model_file(9), 4, num_examples=10)
        page.get_by_text("version 3 of 3").wait_for()
        page.get_by_text("Round 6").wait_for()
        assert page.evaluate("window.same") is True
        assert page.evaluate("window.shifts") < 0.02
        page.locator("#announce", has_text="Round 6").wait_for(state="attached")


def test_the_list_follows_all_trainings(chromium: Any, served: Served, people: People) -> None:
    with page_of(chromium, served.url, people.viewer.token) as page:
        page.wait_for_selector("#connection.on")
        training_id = people.training(name="appears by itself")
        people.actor.start(training_id)
        row = page.locator("tr", has_text="appears by itself")
        row.get_by_text("running").wait_for()
        people.clients[0].submit(training_id, model_file(1))
        row.get_by_text("1 of 2 in").wait_for()


def test_everything_can_be_done_by_keyboard(chromium: Any, served: Served, people: People) -> None:
    training_id = evaluated(people, name="by keyboard")
    with page_of(chromium, served.url, people.actor.token) as page:

        def press(*keys: str) -> None:
            for key in keys:
                page.keyboard.press(key)

        def tab_to(selector: str) -> None:
            for _ in range(40):
                press("Tab")
                if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline != "none"
                    return
            raise AssertionError(f"{selector} is not reached")

        press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        press("Enter")
        tab_to(f"#t-{training_id}")
        press("Enter")
        page.wait_for_selector(".chart")
        tab_to("#do-stop")
        press("Enter")
        page.wait_for_selector("dialog[open]")
        press("Escape")
        page.wait_for_selector("dialog:not([open])", state="attached")
        assert page.evaluate("document.activeElement.id") == "do-stop"
        tab_to(".plot")
        press("ArrowLeft", "ArrowLeft")
        assert page.locator(".chart .unseen").first.text_content() == "version 1: accuracy 0.5"
        assert page.locator(".tip").first.is_visible()
        tab_to("summary")
        press("Enter")
        page.locator(".values td", has_text="0.6").first.wait_for()
    assert state_of(people, training_id).state == training_pb2.TRAINING_STATE_ONGOING


def test_an_actor_steers(chromium: Any, served: Served, people: People) -> None:
    training_id = people.actor.create(name="steered", target_num_updates=3).training_id
    with page_of(chromium, served.url, people.actor.token) as page:

        def ask(action: str) -> Any:
            # Before its scripts run, a page shows the question on a page of its own.
            page.wait_for_selector("#connection.on")
            page.click(f"#do-{action}")
            page.wait_for_selector("dialog[open]")
            return page.locator("dialog")

        def confirm(action: str, title: str) -> None:
            ask(action).get_by_role("button", name=title).click()

        page.goto(f"/trainings/{training_id}")
        assert page.locator("#do-start").count() == 0
        ask("register")
        page.fill("#who", "site 1")
        expect(page.locator("#choices input")).to_have_count(1)
        page.get_by_label("site 1").check()
        page.fill("#who", "site 2")
        page.get_by_label("site 2").check()
        page.fill("#who", "site 1")
        expect(page.locator("#choices input")).to_have_count(2)
        expect(page.locator("#choices input:checked")).to_have_count(2)
        page.locator("dialog").get_by_role("button", name="Register clients").click()
        page.get_by_text("The clients are registered.").wait_for()
        # The script takes what was done from the address, so that a reload does not say it again.
        page.wait_for_url(f"**/trainings/{training_id}")
        confirm("start", "Start")
        page.get_by_text("The training is started.").wait_for()
        confirm("pause", "Pause")
        page.locator(".badge", has_text="paused").wait_for()
        assert state_of(people, training_id).paused
        confirm("resume", "Resume")
        page.get_by_text("The training is resumed.").wait_for()
        ask("remove")
        page.get_by_label("site 2").check()
        page.locator("dialog").get_by_role("button", name="Remove clients").click()
        page.get_by_text("The participants are removed.").wait_for()
        ask("remove")
        page.get_by_label("site 1").check()
        page.locator("dialog").get_by_role("button", name="Remove clients").click()
        page.get_by_role("alert").get_by_text("keeps one participant").wait_for()
        page.get_by_role("link", name="Cancel").click()
        page.wait_for_selector("#training-state")
        ask("stop")
        page.get_by_label("Now; updates").check()
        page.locator("dialog").get_by_role("button", name="Stop").click()
        page.locator(".badge", has_text="stopped").wait_for()
    assert state_of(people, training_id).stopped


def test_labels_are_set_by_an_admin(chromium: Any, served: Served, people: People) -> None:
    with page_of(chromium, served.url, people.admin.token) as page:
        page.get_by_role("link", name="Users").click()
        page.get_by_role("link", name="Labels of site 1").click()
        page.fill("#labels", "gpu")
        page.get_by_role("button", name="Set labels").click()
        page.get_by_role("alert").get_by_text("write NAME=VALUE").wait_for()
        page.fill("#labels", "gpu=yes\nregion=north")
        page.get_by_role("button", name="Set labels").click()
        page.get_by_text("region=north").wait_for()


def test_a_narrow_page_does_not_scroll_sideways(chromium: Any, served: Served, people: People) -> None:
    description = "a-description-without-any-space-" * 8
    training_id = evaluated(people, name="a-name-without-any-space-" * 5, description=description)
    paths = ["/", f"/trainings/{training_id}", "/users"]
    for end in ("participants", "rounds", "rounds/0", "versions", "versions/1", "configuration", "stop", "register"):
        paths.append(f"/trainings/{training_id}/{end}")
    with page_of(chromium, served.url, people.actor.token, is_mobile=True, has_touch=True) as page:
        page.set_viewport_size({"width": 390, "height": 800})
        wide = {}
        for path in paths:
            page.goto(path)
            if path.endswith(training_id):
                page.wait_for_selector(".chart canvas")
            wide[path] = page.evaluate("document.documentElement.scrollWidth")
        assert {path: width for path, width in wide.items() if width > 390} == {}


def test_colours_follow_the_system_until_the_visitor_chooses(chromium: Any, served: Served, people: People) -> None:
    with page_of(chromium, served.url, people.viewer.token, color_scheme="dark") as page:

        def is_dark() -> bool:
            colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 64

        assert is_dark()
        page.get_by_role("button", name="Dark colours").click()
        assert not is_dark()
        page.reload()
        assert not is_dark()
        assert page.locator("#theme").get_attribute("aria-pressed") == "false"


def test_names_are_text(chromium: Any, served: Served, people: People) -> None:
    evil = people.admin.make(people.server.address, "CLIENT", EVIL)
    training_id = people.actor.create(
        name=EVIL,
        description=f"{EVIL}\nsecond line",
        target_num_updates=2,
        metric_names=[EVIL],
        client_ids=[evil.user_id],
    ).training_id
    people.actor.start(training_id)
    with ExitStack() as stack:
        stack.callback(evil.subscribe(training_id, attributes={EVIL: EVIL}).stream.cancel)
        evil.submit(training_id, model_file(1), metrics={EVIL: 1.0})
        wait_for_round(people, training_id, 1)
        report = {"training_id": training_id, "round": 1, "num_examples": 1}
        evil.rounds.SubmitMetrics(round_pb2.SubmitMetricsRequest(metrics={EVIL: 0.5}, **report))
        wait_for_round(people, training_id, 2)
        failure = round_pb2.ReportFailureRequest(training_id=training_id, round=2, reason="X", message=EVIL)
        evil.rounds.ReportFailure(failure)
        with page_of(chromium, served.url, people.actor.token) as page:
            for end in ("", "/participants", "/rounds/0", "/versions", "/versions/1", "/configuration", "/register"):
                page.goto(f"/trainings/{training_id}{end}")
                if not end:
                    page.wait_for_selector(".chart canvas")
                    page.hover(".plot")
                    page.click("summary")
                page.get_by_text(EVIL).first.wait_for()
                assert page.locator("main img").count() == 0
            page.goto("/")
            page.get_by_text(EVIL).first.wait_for()
            page.goto(f"/users?q={EVIL}")
            page.get_by_text(EVIL).first.wait_for()


def test_a_chart_of_one_round_has_points(chromium: Any, served: Served, people: People) -> None:
    training_id = evaluated(people, 1)
    ended = people.training(name="ended before a round")
    people.actor.start(ended)
    people.actor.control.StopTraining(control_pb2.StopTrainingRequest(training_id=ended, when="STOP_NOW"))
    with page_of(chromium, served.url, people.viewer.token) as page:
        page.goto(f"/trainings/{training_id}")
        chart = page.locator(".chart", has_text="Share")
        chart.locator("canvas").wait_for()
        # Within the frame of the axes, one point of three curves that are the same.
        colours = """(canvas) => {
          const data = canvas.getContext("2d").getImageData(60, 20, canvas.width - 100, canvas.height - 70).data;
          const found = new Set();
          for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) found.add(data.slice(i, i + 3).join());
          return [...found];
        }"""
        assert len(chart.locator("canvas").evaluate(colours)) > 1
        page.goto(f"/trainings/{ended}")
        page.get_by_text("There are no values to draw.").wait_for()


def test_a_page_is_small(chromium: Any, served: Served, people: People) -> None:
    training_id = evaluated(people)
    with page_of(chromium, served.url, people.actor.token) as page:
        # As the first page of a visitor, who has nothing in a cache.
        page.context.new_cdp_session(page).send("Network.setCacheDisabled", {"cacheDisabled": True})
        page.goto(f"/trainings/{training_id}")
        page.wait_for_selector(".chart canvas")
        entries = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        sizes = dict(page.evaluate(f"{entries}.map((one) => [one.name, one.decodedBodySize])"))
        assert sizes[f"{served.url}/static/vendor/htmx-2.0.11.min.js"] > 50_000
        assert sizes[f"{served.url}/trainings/{training_id}"] > 2_000
        assert sum(sizes.values()) <= MAX_PAGE_BYTES, sizes


def test_a_filter_that_is_filled_before_the_scripts_are_loaded_filters(
    chromium: Any, served: Served, people: People
) -> None:
    def slow(route: Any) -> None:
        time.sleep(1)
        route.continue_()

    with page_of(chromium, served.url, people.admin.token) as page:
        page.context.new_cdp_session(page).send("Network.setCacheDisabled", {"cacheDisabled": True})
        page.route("**/htmx*", slow)
        page.goto("/users", wait_until="commit")
        page.fill("#q", "site 2")
        assert page.evaluate("typeof htmx") == "undefined"
        expect(page.locator("#rows tbody tr")).to_have_count(1)


@pytest.mark.examples
def test_ten_thousand_participants(chromium: Any, served: Served, people: People) -> None:
    """In pages, with a filter, and live."""
    ids: list[str] = []
    for start in range(0, 10_000, 1000):
        names = [f"client {number:05}" for number in range(start, start + 1000)]
        users = [user_pb2.CreateUserRequest(name=name, role="ROLE_CLIENT") for name in names]
        created = people.admin.users.CreateUsers(user_pb2.CreateUsersRequest(users=users)).users
        ids += [user.user_id for user in created]
        last = created[-1]
    training_id = people.actor.create(name="many", client_ids=ids).training_id
    people.actor.start(training_id)
    with page_of(chromium, served.url, people.viewer.token) as page:
        page.goto(f"/trainings/{training_id}")
        page.get_by_text("0 of 10,000 updates").wait_for()
        page.get_by_role("link", name="All 10,000 participants").click()
        page.wait_for_selector("#connection.on")
        assert page.locator("#rows tbody tr").count() == 50
        page.get_by_role("link", name="Next page").click()
        page.locator("#rows").get_by_text("client 00050").wait_for()
        page.fill("#q", "09999")
        page.locator("#rows").get_by_text("1 matches.").wait_for()
        page.locator("#rows tbody").get_by_text("not connected").wait_for()
        Person(people.admin.channel, last.token).submit(training_id, model_file(1))
        page.locator("#rows tbody").get_by_text("arrived").wait_for()
