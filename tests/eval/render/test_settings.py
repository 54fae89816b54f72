"""The line with the settings that a checkpoint was loaded with."""

from eval.render.settings import spell_settings


def test_settings_are_worded_by_the_file_that_says_them() -> None:
    settings = {
        "horizon": {"value": 50, "from": "config.json chunk_size"},
        "cameras": {"value": ["base_0_rgb", "left_wrist_0_rgb"], "from": "config.json input_features"},
        "state_eps": {"value": 1e-08, "from": "policy_preprocessor.json eps"},
        "denoise_steps": {"value": 3, "from": "denoise.steps; config.json num_inference_steps says 10"},
    }
    assert spell_settings(settings) == (
        "config.json: horizon 50, cameras base_0_rgb and left_wrist_0_rgb; policy_preprocessor.json: "
        "state_eps 1e-08; denoise.steps, config.json num_inference_steps says 10: denoise_steps 3"
    )


def test_assumptions_of_openpis_folder_are_called_so() -> None:
    source = "assumed by checkpoint=pi05_libero; openpi's folder does not say"
    values = {"prompt": "without state", "norm": "quantile", "actions": "absolute"}
    settings = {name: {"value": value, "from": source} for name, value in values.items()}
    assert spell_settings(settings) == (
        "assumed by checkpoint=pi05_libero, openpi's folder does not say: prompt without state, "
        "norm quantile, actions absolute"
    )
