"""How the commands for developers print, fail and end."""

from __future__ import annotations

import signal

import pytest
from command import CommandError, new_home, run_command, status_of, table


@pytest.fixture
def ended():
    """How a command ends: its exit status. The test's own signal handlers are back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def status(main):
        with pytest.raises(SystemExit) as end:
            run_command(main)
        return end.value.code

    yield status
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_table_has_a_line_under_its_headings_and_one_for_each_row():
    assert table(["a", "b"], [[1, "x"], ["", 2.5]]) == "| a | b |\n|---|---|\n| 1 | x |\n|  | 2.5 |"


@pytest.mark.parametrize(("wrong", "status", "printed"), [([], 0, ""), (["x", "y"], 1, "x\ny\n")])
def test_a_command_fails_if_anything_is_wrong_and_names_it(capsys, wrong, status, printed):
    assert status_of(wrong) == status
    assert capsys.readouterr().err == printed


def test_the_status_of_a_command_is_what_it_returns(ended):
    assert [ended(lambda status=status: status) for status in (0, 2)] == [0, 2]


def test_a_command_that_cannot_do_its_work_fails_and_says_why(ended, capsys):
    def main():
        raise CommandError("no Airflow")

    assert ended(main) == 1
    assert capsys.readouterr().err == "no Airflow\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_a_signal_ends_deletes_what_it_has_written(ended, number):
    homes = []

    def main():
        with new_home("test") as home:
            homes.append(home)
            (home / "file").touch()
            signal.raise_signal(number)

    assert ended(main) == 130
    assert not homes[0].exists()
