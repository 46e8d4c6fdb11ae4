import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import TINY, tiny
from swiftformer import SwiftFormerBackbone, SwiftFormerConfig, SwiftFormerModel
from swiftformer.convert import convert_state_dict, detect_naming, infer_config


@st.composite
def configs(draw):
    stages = draw(st.integers(1, 4))
    dims = draw(st.lists(st.sampled_from([4, 8, 12]), min_size=stages, max_size=stages))
    return SwiftFormerConfig(
        depths=draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages)),
        embed_dims=dims,
        downsamples=draw(st.lists(st.booleans(), min_size=stages, max_size=stages)),
        mlp_ratio=draw(st.sampled_from([1, 2, 4])),
        num_channels=draw(st.integers(1, 4)),
        use_layer_scale=draw(st.booleans()),
        distillation=draw(st.booleans()),
        num_labels=draw(st.integers(1, 5)),
    )


@settings(max_examples=25, deadline=None)
@given(config=configs(), naming=st.sampled_from(["authors", "timm"]))
def test_round_trip_and_inference_of_the_configuration(config, naming):
    from swiftformer import SwiftFormerForImageClassification

    with torch.device("meta"):
        state = SwiftFormerForImageClassification(config).state_dict()
    there = convert_state_dict(state, "transformers", naming)
    assert detect_naming(there) == naming and detect_naming(state) == "transformers"
    back = convert_state_dict(there, naming, "transformers")
    assert list(back) == list(state) and all(back[k] is state[k] for k in state)
    inferred = SwiftFormerConfig(**infer_config(back))
    for name in ("depths", "embed_dims", "mlp_ratio", "num_channels", "use_layer_scale", "num_labels", "distillation"):
        assert getattr(inferred, name) == getattr(config, name), name
    with torch.device("meta"):
        again = SwiftFormerForImageClassification(inferred).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in state.items()}


def test_names_are_timms():
    theirs = timm.create_model("swiftformer_xs").state_dict()
    ours = convert_state_dict(theirs, "timm", "transformers")
    assert convert_state_dict(ours, "transformers", "timm").keys() == theirs.keys()


def test_bare_model_and_backbone():
    bare = SwiftFormerModel(SwiftFormerConfig(**TINY)).state_dict()
    assert "patch_embed.patch_embedding.0.weight" in bare
    common = convert_state_dict(bare, "transformers", "transformers")
    assert all(key.startswith("swiftformer.") for key in common)
    assert infer_config(common)["depths"] == TINY["depths"]
    backbone = SwiftFormerBackbone(SwiftFormerConfig(**TINY, out_indices=[1, 2, 3, 4])).state_dict()
    authors = convert_state_dict(backbone, "transformers", "authors")
    assert {"norm0.weight", "norm2.weight", "norm4.weight", "norm6.weight"} <= authors.keys()
    assert convert_state_dict(authors, "authors", "transformers").keys() == backbone.keys()
    with pytest.raises(ValueError, match="timm has no names"):
        convert_state_dict(backbone, "transformers", "timm")


def test_foreign_and_partial_state_dicts():
    assert detect_naming({"conv1.weight": 0}) is None
    state = tiny().state_dict()
    partial = {k: v for k, v in state.items() if ".attn." not in k}
    with pytest.raises(ValueError, match="not a whole SwiftFormer"):
        infer_config(partial)
