"""Nodes that chaos drains: which is next, and when it is empty."""

from __future__ import annotations

import argparse

import pytest

from chaos.analysis import Findings, analyze
from chaos.changes import Change
from chaos.fleet import Fleet, Replica
from chaos.node_drain import DrainedNode, is_empty, next_node
from chaos.options import BadOptions, ChaosOptions, add_flags, read
from chaos.report import lines


def replica(name: str, node: str, deployment: str = "engine", state: str = "RUNNING") -> Replica:
    return Replica(name, deployment, state, 1, node, f"10.0.0.{node}", f"actor-{name}")


def options(*flags: str) -> ChaosOptions:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read(parser.parse_args(["--fault", "drain-node", *flags]))


def test_the_node_with_the_most_engines_is_next() -> None:
    fleet = Fleet((replica("a", "1"), replica("b", "2"), replica("c", "2"), replica("i", "3", "ingress")), {})
    found = next_node(fleet, ())
    assert found is not None
    assert found.node_id == "2"
    other = next_node(fleet, {"2"})
    assert other is not None
    assert other.node_id == "1"


def test_the_only_node_with_engines_is_left_alone() -> None:
    fleet = Fleet((replica("a", "1"), replica("b", "1"), replica("c", "2", state="STARTING")), {})
    assert next_node(fleet, ()) is None


def test_a_node_is_empty_when_the_last_replica_has_ended() -> None:
    fleet = Fleet((replica("a", "1", state="STOPPING"), replica("b", "2")), {})
    assert not is_empty(fleet, "1")
    assert is_empty(fleet, "3")


def test_drains_are_changes_of_a_closed_loop() -> None:
    found = options("--requests", "40", "--drains", "2", "--node-deadline-s", "30")
    assert found.changes == (Change.DRAIN_NODE, Change.DRAIN_NODE)
    assert found.node_deadline_s == 30.0
    with pytest.raises(BadOptions, match="give --requests N"):
        options()


def test_the_report_says_how_long_a_node_took() -> None:
    findings = Findings(drained=[DrainedNode("10.0.0.2", 60.0, 14.4)])
    printed = list(lines(options("--requests", "40"), findings, analyze(findings, 40)))
    assert "nodes emptied           10.0.0.2 in 14 of 60 s" in printed
