"""A trained encoder is one call away, and gives what evaluation gave."""

import numpy as np
import pytest

from vilmedic_ssl import AutoModel, ensemble, load_config, train
from vilmedic_ssl.errors import UserError

CONFIG = "config/SELFSUP/simclr-phantom.yml"


def test_pretrained_model_gives_the_embeddings_of_the_evaluation(tiny, phantom):
    plugin = ["ensemblor.post_processing=[{save_representation: {keys: [encoder, visual]}}]"]
    config = load_config(CONFIG, [*tiny("auto"), "ensemblor.splits=[test]", *plugin])
    folder = train(config)
    ensemble(config)
    model, processor = AutoModel.from_pretrained(folder)
    saved = folder / "post_processing" / "save_representation_best-1_0_test"
    ids = np.load(saved / "test_ids.npy")
    batch = processor.inference(image=[phantom / name for name in ids[:3]])
    out = model(**batch)
    for key in ("encoder", "visual"):
        expected = np.load(saved / f"test_{key}_embeddings.npy")[:3]
        np.testing.assert_allclose(out[key].detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        AutoModel.from_pretrained(tmp_path)
