"""A run says which layers its method can never change."""

import pytest
import torch

from modules.training import setup

pytestmark = pytest.mark.usefixtures("forget_accelerate")


def test_it_is_a_warning_on_screen_and_an_event(place, capfd, monkeypatch):
    load, cleared = setup.load, []

    def with_zeros(*given):
        model = load(*given)
        network = setup.whole(model)
        cleared.append(next(name for name in setup.layer_names(model) if name.endswith("attn1.to_q")))
        with torch.no_grad():
            network.get_submodule(cleared[0]).weight.zero_()
        return model

    monkeypatch.setattr(setup, "load", with_zeros)
    for name, adapter in (("stuck", {"method": "dora", "rank": 2}), ("free", {"method": "lora", "rank": 2})):
        assert place.train(name, "--training.steps", "1", adapter=adapter) == 0
        screen = capfd.readouterr()
        messages = [event["message"] for event in place.events(name, "warning")]
        said = [message for message in messages if "weights are all zero" in message]
        assert len(said) == (name == "stuck")
        assert (screen.out + screen.err).count("weights are all zero") == len(said)
        assert all(cleared[0] in message for message in said)
