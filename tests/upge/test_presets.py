"""Numbers and parts that presets and objectives refuse, and their bounds."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
import upge


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: upge.PPO(clip_low=1.5), "PPO clip_low.*1.5"),
        (lambda: upge.DAPO(clip_high=-0.1), "DAPO clip_high.*-0.1"),
        (lambda: upge.PPO(dual_clip=0.5), "dual_clip.*0.5"),
        (lambda: upge.PPO(dual_clip=1), "PPO dual_clip.*greater than 1.*got 1"),
        (lambda: upge.PPO(dual_clip=10**400), "PPO dual_clip.*greater than 1.*got 10000"),
        (lambda: upge.CISPO(clip_high=10**400), "CISPO clip_high.*at least 0.*got 10000"),
        (lambda: upge.CISPO(clip_high=-1), "CISPO clip_high.*-1"),
        (lambda: upge.LUFFY(gamma=0), "LUFFY gamma.*0"),
        (lambda: upge.LUFFY(gamma=inf), "LUFFY gamma.*finite.*inf"),
        (lambda: upge.SAPO(tau_negative=0), "SAPO tau_negative.*0"),
        (lambda: upge.GRPO("0.2"), "GRPO clip_low.*number.*'0.2'"),
        (lambda: upge.PPO(dual_clip=torch.tensor(3.0)), "PPO dual_clip.*number.*tensor"),
        (lambda: upge.WeightClip(high=-1), "^WeightClip high: must be a number, at least 0; got -1$"),
        (lambda: upge.WeightClip(low=2), "^WeightClip low: must be a number, between 0 and 1 or None; got 2$"),
        (lambda: upge.CISPO(max_ratio=0), "^WeightClip max_ratio: must be a number, positive or None; got 0$"),
        (lambda: upge.CISPO(clip_low=2), "WeightClip low.*2"),
        (lambda: upge.CISPO(clip_low=0.1, max_ratio=0.5), "max_ratio: must be at least.*0.9.*0.5"),
        (lambda: upge.Clip(-1, -2), "Clip low.*-1"),
        (lambda: upge.Clip(1.5, 0.2), "^Clip low: must be a number, between 0 and 1; got 1.5$"),
        (lambda: upge.Clip(0.2, -0.1), "^Clip high: must be a number, at least 0; got -0.1$"),
        (lambda: upge.Clip(0.2, 0.2, dual=1), "^Clip dual: must be a number, greater than 1 or None; got 1$"),
        (lambda: upge.Shaping(0), "^Shaping gamma: must be a number, positive and finite; got 0$"),
        (lambda: upge.Shaping(inf), "^Shaping gamma: must be a number, positive and finite; got inf$"),
        (lambda: upge.SoftGate(1, nan), "SoftGate tau_negative.*nan"),
        (lambda: upge.SoftGate(0, 1), "^SoftGate tau_positive: must be a number, positive and finite; got 0$"),
        (lambda: upge.SoftGate(1, inf), "^SoftGate tau_negative: must be a number, positive and finite; got inf$"),
        (lambda: upge.Objective(reference="rolout"), "^reference: must be.*'rollout'.*'rolout'"),
        (lambda: upge.Objective(advantage="two"), "^advantage: must be.*'given', 'one'.*'two'"),
        (lambda: upge.Objective(likelihood="exp"), "^likelihood: must be.*'log', 'ratio'.*'exp'"),
        (lambda: upge.Objective(upge.Clip(0.2, 0.2)), "reference: the mask Clip.*always 1.*'rollout'"),
        (lambda: upge.Objective(upge.SoftGate(1, 1), "one"), "reference: the mask SoftGate.*probability"),
        (lambda: upge.Objective(upge.WeightClip(), "rollout", likelihood="ratio"), "likelihood: WeightClip.*'log'"),
    ],
)
def test_bad_preset(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_presets_on_their_bounds():
    assert upge.Clip(0, 0, dual=1.5) == upge.Clip(0.0, 0.0, 1.5)
    assert upge.Clip(1, 2).low == upge.WeightClip(0, low=1).low == 1
    assert upge.WeightClip(low=0).lower == 1
    assert upge.SoftGate(0.5, 0.25).tau_negative == 0.25


def test_parts_of_another_type():
    with pytest.raises(TypeError, match=r"mask: must be one of upge.Unmasked\(\), Clip.*'clip'"):
        upge.Objective(mask="clip")
    with pytest.raises(TypeError, match=r"mask: .*Clip"):
        upge.Objective(mask=upge.Clip)
    with pytest.raises(TypeError, match=r"function: must be callable.*int"):
        upge.Objective(function=3)


def test_parts_with_a_function():
    with pytest.raises(TypeError, match=r"WeightClip drop: must be True or False; got 'no'"):
        upge.WeightClip(0.2, "no")
    with pytest.raises(TypeError, match=r"per_token: must be True or False; got 'no'"):
        upge.Objective.from_function(lambda l, b: -l, per_token="no")
    with pytest.raises(ValueError, match=r"function: takes the place of mask, reference"):
        upge.Objective(upge.Clip(0.2, 0.2), "rollout", function=lambda l, b: -l)
