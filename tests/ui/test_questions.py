"""One question for all pages, an answer that is not older than it says, and no wait without an end."""

from __future__ import annotations

import asyncio

from virtual_time import VirtualLoop

from airflow_provider_agents import clock
from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.ui.questions import LIMIT_SECONDS, SharedQuestion


def run(steps):
    """Run on a loop whose time takes none; `monotonic` is that loop's."""
    loop = VirtualLoop()

    class LoopTime(clock.SystemClock):
        def monotonic(self):
            return loop.time()

    with clock.replaced_by(LoopTime()):
        try:
            return loop.run_until_complete(steps)
        finally:
            loop.close()


class Platform:
    """Counts the questions; answers with their number, after some seconds, or fails."""

    def __init__(self, seconds=0.5):
        self.seconds, self.asked, self.error = seconds, 0, None

    async def __call__(self):
        self.asked += 1
        number = self.asked
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return number


def test_sixty_pages_ask_one_question():
    platform = Platform()

    async def steps():
        question = SharedQuestion(platform, 5.0)
        return await asyncio.gather(*(question.answer() for _ in range(60)))

    answers = run(steps())
    assert platform.asked == 1
    assert {answer.value for answer in answers} == {1}


def test_an_answer_is_asked_for_again_once_it_is_not_fresh():
    platform = Platform()

    async def steps():
        question = SharedQuestion(platform, 5.0)
        values = []
        for pause in (0.0, 3.0, 3.0):
            await asyncio.sleep(pause)
            values.append((await question.answer()).value)
        return values

    assert run(steps()) == [1, 1, 2]


def test_a_platform_that_hangs_costs_a_page_eight_seconds_and_no_more():
    platform = Platform(seconds=3600)

    async def steps():
        question = SharedQuestion(platform, 5.0)
        began = asyncio.get_running_loop().time()
        shown = await question.answer()
        return asyncio.get_running_loop().time() - began, shown

    took, shown = run(steps())
    assert LIMIT_SECONDS <= took < LIMIT_SECONDS + 0.1
    assert shown.value is None
    assert "not answered within 8 seconds" in shown.error


def test_a_failure_leaves_the_last_answer_with_its_age():
    platform = Platform()

    async def steps():
        question = SharedQuestion(platform, 5.0)
        await question.answer()
        await asyncio.sleep(60)
        platform.error = AgentsError("The API key of the connection is wrong.")
        return await question.answer()

    shown = run(steps())
    assert (shown.value, shown.error) == (1, "The API key of the connection is wrong.")
    assert 60 <= shown.age_seconds < 62


def test_a_bug_is_shown_by_its_type_only():
    platform = Platform()
    platform.error = RuntimeError("secret words")

    async def steps():
        return await SharedQuestion(platform, 5.0).answer()

    shown = run(steps())
    assert "RuntimeError" in shown.error
    assert "secret words" not in shown.error


def test_a_page_that_is_closed_takes_no_answer_from_the_others():
    platform = Platform()

    async def steps():
        question = SharedQuestion(platform, 5.0)
        closed = asyncio.create_task(question.answer())
        other = asyncio.create_task(question.answer())
        await asyncio.sleep(0.1)
        closed.cancel()
        return await other

    assert run(steps()).value == 1
