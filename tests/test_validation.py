"""The arguments of every public class: what is refused, when, and in which words."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, Asset
from conftest import needs_airflow

from airflow_provider_agents.api.errors import InvalidArgumentError
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.operators import CheckAgentBudgetOperator, ExecuteAgentOperator
from airflow_provider_agents.runs import selector
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.triggers import AgentIdleTrigger, AgentRunTrigger
from airflow_provider_agents.version_compat import WATCHERS_HAVE_QUEUES
from airflow_provider_agents.watchers import AgentRunEventTrigger

SUBMISSION = {"version": 1, "agent_id": "agent-1", "taken_at": "2026-01-01T09:00:00Z"}
#: One value of each kind that a user can write by mistake.
VALUES = {
    "None": None,
    "a number": 7,
    "a negative number": -1,
    "not a number": float("nan"),
    "a huge number": 1e12,
    "an empty text": "",
    "blanks": "  ",
    "a text with a blank at its end": "agent-1 ",
    "a line break": "a\nb",
    "a word": "nonsense",
    "a switch as text": "False",
    "a length of time as text": "1h",
    "a number as text": "60",
    "True": True,
    "a list": ["agent-1"],
    "a dict": {"a": 1},
    "bytes": b"agent-1",
    "a moment without a zone": datetime(2026, 1, 1),  # noqa: DTZ001 - the mistake
    "a length of time": timedelta(minutes=10),
    "an object": object(),
}
#: What each kind of argument takes of them.
KINDS = {
    "agent id": {"a word", "a switch as text", "a length of time as text", "a number as text"},
    "event id": {"a text with a blank at its end", "a word", "a switch as text", "a length of time as text",
                 "a number as text"},
    "connection": {"a word", "a switch as text", "a length of time as text", "a number as text"},
    "switch": {"True"},
    "seconds": {"a number", "a length of time"},
    "choice": set(),
    "moment": set(),
    "submission": set(),
    "names": set(),
    "statuses": {"a list"},
    "copy key": set(),
    "budget": set(),
    "text": {words for words, value in VALUES.items() if isinstance(value, str)},
    "queue": {"a word", "a switch as text", "a length of time as text", "a number as text"}
    if WATCHERS_HAVE_QUEUES
    else set(),
}  # fmt: skip


class Case:
    """A public class and the kinds of its arguments.

    Args:
        made: the class.
        good: arguments that make an instance.
        kinds: of each argument, by its name; with `None` where the argument may be None.
    """

    def __init__(self, made, good, kinds, optional=()):
        self.made, self.good, self.kinds, self.optional = made, good, kinds, frozenset(optional)

    def wrong(self):
        for name, kind in self.kinds.items():
            taken = KINDS[kind] | ({"None"} if name in self.optional else set())
            for words, value in VALUES.items():
                if words not in taken:
                    yield pytest.param(self, name, value, id=f"{self.made.__name__}-{name}-{words}")


PLATFORM = ("settle", "appear_within", "exclusive")
OPERATOR = Case(
    ExecuteAgentOperator,
    {"task_id": "run", "agent_id": "agent-1"},
    {
        "agent_id": "agent id",
        "agents_conn_id": "connection",
        "wait_for_completion": "switch",
        "deferrable": "switch",
        "poll_interval": "seconds",
        "timeout": "seconds",
        "if_running": "choice",
        "on_ambiguous": "choice",
        "settle": "seconds",
        "appear_within": "seconds",
        "exclusive": "switch",
        "durable": "switch",
        "end_from_trigger": "switch",
        "budget": "budget",
    },
    # What a task leaves out is the connection's.
    optional=(*PLATFORM, "budget"),
)
BUDGET_CHECK = Case(
    CheckAgentBudgetOperator,
    {"task_id": "run", "agent_id": "agent-1"},
    {"agent_id": "agent id", "agents_conn_id": "connection", "budget": "budget"},
    optional=("budget",),
)
NAMED = {"submission": "submission", "event_id": "event id", "started_after": "moment", "started_before": "moment"}
WAITING = {"agents_conn_id": "connection", "settle": "seconds", "appear_within": "seconds", "exclusive": "switch",
           "on_ambiguous": "choice"}  # fmt: skip
SENSOR = Case(
    AgentRunSensor,
    {"task_id": "run", "agent_id": "agent-1", "event_id": "e"},
    {
        **NAMED,
        **WAITING,
        "agent_id": "agent id",
        "deferrable": "switch",
        "poke_interval": "seconds",
        "timeout": "seconds",
        "soft_fail": "switch",
        "never_fail": "switch",
        "start_from_trigger": "switch",
    },
    # A sensor without these has another one, or its own default.
    optional=("agent_id", "deferrable", "poke_interval", *NAMED, *PLATFORM),
)
RUN_TRIGGER = Case(
    AgentRunTrigger,
    {"agents_conn_id": "c", "submission": SUBMISSION, "poll_interval": 5.0, "deadline_at": "2026-01-02T09:00:00+00:00",
     "timeout": 60.0, "settle": 30.0, "appear_within": 300.0, "on_ambiguous": "all"},
    {**NAMED, **WAITING, "agent_id": "agent id", "poll_interval": "seconds", "deadline_at": "moment",
     "timeout": "seconds", "end_with": "names", "show": "names", "copy_key": "copy key", "next_try": "text"},
    optional=("agent_id", "deadline_at", "timeout", "end_with", "copy_key", "next_try", *NAMED, *PLATFORM),
)  # fmt: skip
IDLE_TRIGGER = Case(
    AgentIdleTrigger,
    {"agents_conn_id": "c", "agent_id": "a", "poll_interval": 5.0, "deadline_at": "2026-01-02T09:00:00+00:00",
     "settle": 30.0, "hold_seconds": 30.0},
    {"agents_conn_id": "connection", "agent_id": "agent id", "poll_interval": "seconds", "deadline_at": "moment",
     "settle": "seconds", "hold_seconds": "seconds"},
)  # fmt: skip
WATCHER = Case(
    AgentRunEventTrigger,
    {},
    {"agent_id": "agent id", "statuses": "statuses", "agents_conn_id": "connection", "poll_interval": "seconds",
     "settle": "seconds", "queue": "queue"},
    optional=("agent_id", "settle", "queue"),
)  # fmt: skip
HOOK = Case(AgentsHook, {}, {"agents_conn_id": "connection"})
CASES = [OPERATOR, BUDGET_CHECK, SENSOR, RUN_TRIGGER, IDLE_TRIGGER, WATCHER, HOOK]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.made.__name__)
def test_every_argument_of_every_public_class_has_its_kind_here(case):
    parameters = inspect.signature(case.made.__init__).parameters.values()
    own = {one.name for one in parameters if one.kind in {one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD}}
    if any(one.kind == one.VAR_KEYWORD and one.name == "selecting" for one in parameters):
        own |= selector.ARGUMENTS.keys()
    assert own - {"self"} == set(case.kinds)
    case.made(**case.good)


@pytest.mark.parametrize(("case", "name", "value"), [param for case in CASES for param in case.wrong()])
def test_a_value_of_a_wrong_kind_is_refused_when_the_dag_is_parsed(case, name, value):
    with pytest.raises(InvalidArgumentError) as caught:
        case.made(**{**case.good, name: value})
    # What is wrong comes first, then whose it is.
    owner = "task 'run'" if "task_id" in case.good else case.made.__name__
    assert str(caught.value).startswith(f"{name} of {owner} ")


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in (OPERATOR, SENSOR) for name in case.kinds if name != "start_from_trigger"],
    ids=lambda one: one.made.__name__ if isinstance(one, Case) else one,
)
def test_a_bad_value_that_comes_after_parsing_fails_before_any_request_for_good(platform, task, case, name):
    # All values in one test: a platform for each would take longer than the tests themselves.
    for value in (param.values[2] for param in case.wrong() if param.values[1] == name):
        op = case.made(**case.good)
        setattr(op, name, value)
        if name in {"agent_id", "agents_conn_id", "event_id"} and type(value) is int and value >= 0:
            continue  # an id that native rendering has made a number
        with pytest.raises(AirflowFailException, match=name):
            op.execute(task.context())
    assert platform.sim.requests == []


def test_a_mapped_value_of_a_wrong_kind_fails_before_the_post_and_is_not_retried(platform, task):
    for name, value in (("timeout", "1h"), ("if_running", "nope"), ("deferrable", "False"), ("settle", -1)):
        with DAG("d", schedule=None):
            mapped = ExecuteAgentOperator.partial(task_id="run", **{name: value}).expand(agent_id=["agent-1"])
        op = mapped.unmap({"agent_id": "agent-1"})
        with pytest.raises(AirflowFailException, match=name):
            op.execute(task.context())
    assert platform.sim.requests == []


def test_a_mapped_tasks_times_are_seconds_before_it_has_run():
    with DAG("d", schedule=None):
        mapped = ExecuteAgentOperator.partial(task_id="run", timeout=timedelta(hours=1)).expand(agent_id=["agent-1"])
    assert mapped.unmap({"agent_id": "agent-1"}).timeout == 3600.0


@pytest.mark.parametrize("rendered", [12345, "12345"])
def test_digits_that_native_rendering_has_made_a_number_are_an_id_again(platform, task, rendered):
    platform.sim.add_agent("12345")
    op = ExecuteAgentOperator(task_id="run", agent_id="{{ params.agent }}", deferrable=False)
    op.agent_id = rendered
    assert op.execute(task.context())["agentId"] == "12345"


@pytest.mark.parametrize(
    "template",
    ["{{ params.agent }}", "{% if x %}a{% endif %}", "agent-{{ ds }}", lambda context, jinja_env: "agent-1"],
    ids=["text", "block", "part", "callable"],
)
def test_a_template_is_not_judged_before_it_is_rendered(template):
    assert ExecuteAgentOperator(task_id="run", agent_id=template).agent_id is template


class _WithFieldsOfItsOwn(ExecuteAgentOperator):
    template_fields = (*ExecuteAgentOperator.template_fields, "prompt")

    def __init__(self, *, prompt, **arguments):
        super().__init__(**arguments)
        self.prompt = prompt


def test_a_subclass_may_have_template_fields_that_it_sets_later():
    op = _WithFieldsOfItsOwn(task_id="run", agent_id="{{ params.agent }}", prompt="{{ ds }}")
    assert op.prompt == "{{ ds }}"
    with pytest.raises(InvalidArgumentError, match="timeout of task 'run'"):
        _WithFieldsOfItsOwn(task_id="run", agent_id="a", prompt="p", timeout="1h")


def test_an_xcom_is_not_judged_before_it_is_read():
    with DAG("d", schedule=None):
        first = ExecuteAgentOperator(task_id="first", agent_id="agent-1")
        second = ExecuteAgentOperator(task_id="second", agent_id=first.output)
    assert second.upstream_task_ids == {"first"}


def test_a_dag_with_delimiters_of_its_own_is_not_judged_before_it_is_rendered():
    with DAG("d", schedule=None, jinja_environment_kwargs={"variable_start_string": "[["}):
        op = ExecuteAgentOperator(task_id="run", agent_id="[[ ds ]] ")
    assert op.agent_id == "[[ ds ]] "


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"timeout": "1h"}, "timeout of task 'run' must be .* got '1h'. Write 3600 without quotes."),
        ({"timeout": "90"}, "Write 90 without quotes."),
        ({"timeout": "15 min"}, "Write 900 without quotes."),
        ({"timeout": "soon"}, "got 'soon'.$"),
        ({"deferrable": "False"}, "must be True or False, got 'False'. Write False without quotes."),
        ({"deferrable": "false "}, "Write False without quotes."),
        ({"deferrable": 0}, "must be True or False, got 0.$"),
        ({"if_running": "Wait"}, "must be one of start, attach, wait, skip, fail, got 'Wait'."),
        ({"agent_id": "agent-123 "}, "agent_id of task 'run' .*'agent-123 '"),
        ({"agents_conn_id": "my conn"}, "must be the id of an Airflow connection .* got 'my conn'."),
        (
            {"timeout": 10, "settle": 30},
            "timeout .10 s. must be at least settle .30 s.: before that there is no",
        ),
        ({"execution_timeout": timedelta(seconds=9), "settle": 30}, "execution_timeout .9 s. must be at least"),
        ({"appear_within": 10, "settle": 30}, "appear_within .10 s. must be at least settle .30 s.: .*in task 'run'"),
        ({"end_from_trigger": True, "deferrable": False}, "end_from_trigger needs a task that waits in the triggerer"),
    ],
    ids=str,
)
def test_the_error_names_the_argument_the_task_the_value_and_what_to_write(arguments, words):
    with pytest.raises(InvalidArgumentError, match=words):
        ExecuteAgentOperator(**{"task_id": "run", "agent_id": "agent-1", **arguments})


def test_a_task_that_does_not_wait_may_have_any_timeout():
    op = ExecuteAgentOperator(task_id="run", agent_id="agent-1", timeout=1, wait_for_completion=False)
    assert op.timeout == 1


class _Loud:
    def __repr__(self):
        raise RuntimeError("no repr")


def test_a_value_that_cannot_be_shown_is_refused_all_the_same():
    with pytest.raises(InvalidArgumentError, match="got an object of _Loud"):
        ExecuteAgentOperator(task_id="run", agent_id="agent-1", settle=_Loud())


# --- values that take several forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1, "agent_id": "agent-1", "request_id": null}',
        "{'version': 1, 'agent_id': 'agent-1', 'request_id': None}",
        ' {"version": 1, "agent_id": "agent-1", "request_id": null}\n',
        {"version": 1, "agent_id": "agent-1", "request_id": None},
    ],
)
def test_a_dict_is_read_from_json_and_from_what_a_plain_template_makes_of_it(text):
    assert selector.read_mapping(text) == {"version": 1, "agent_id": "agent-1", "request_id": None}


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[1]", "__import__('os')", "{" * 10_000, "1" * 10_000, 7, None, b"{}"]
)
def test_what_is_no_dict_is_refused(text):
    with pytest.raises(ValueError, match="must be a dict"):
        selector.read_mapping(text)


def test_a_moment_is_read_from_text_and_kept_as_it_is():
    moment = datetime(2026, 1, 1, 9, tzinfo=UTC)
    assert selector.read_moment(moment) is moment
    assert selector.read_moment(" 2026-01-01T09:00:00Z ") == moment


# --- a task that ends in its trigger ----------------------------------------------------------------------------------


class _Overriding(ExecuteAgentOperator):
    def execute_complete(self, context, event=None):
        return super().execute_complete(context, event)


class _WithPostExecute(ExecuteAgentOperator):
    def post_execute(self, context, result=None):
        pass


@needs_airflow("3.3")
@pytest.mark.parametrize(
    ("made", "arguments", "lost"),
    [
        (ExecuteAgentOperator, {"outlets": [Asset("x")]}, "outlets"),
        (ExecuteAgentOperator, {"on_success_callback": print}, "on_success_callback"),
        (ExecuteAgentOperator, {"multiple_outputs": True}, "multiple_outputs"),
        (ExecuteAgentOperator, {"post_execute": print}, "post_execute"),
        (_Overriding, {}, "the execute_complete of _Overriding"),
        (_WithPostExecute, {}, "the post_execute of _WithPostExecute"),
    ],
)
def test_what_would_be_lost_without_a_worker_is_refused_when_the_dag_is_parsed(made, arguments, lost):
    with pytest.raises(InvalidArgumentError, match=f"end_from_trigger of task 'run' would lose .*{lost}"):
        made(task_id="run", agent_id="agent-1", end_from_trigger=True, **arguments)
    made(task_id="run", agent_id="agent-1", **arguments)
