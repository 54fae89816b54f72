"""A stand-in for `lerobot`: the modules, names and signatures that examples/my_policy uses, on tiny networks.

Compared by hand with the wheels of lerobot 0.4.4, 0.5.1 and 0.6.1:
    * `lerobot.configs.policies.PreTrainedConfig`: a dataclass with `type`, `image_features`, `input_features`
      and `output_features` (None allowed), which replaces a device that the machine lacks; `from_pretrained`
      reads config.json.
    * `lerobot.configs.types.FeatureType`, `NormalizationMode`: enums of str; `PolicyFeature(type, shape)`.
    * `lerobot.policies.factory.get_policy_class(name)` and `make_pre_post_processors(policy_cfg,
      pretrained_path, **kwargs)` with `preprocessor_overrides` by registry name; an override without a step
      is a KeyError. A pipeline has `steps` and is called with a batch, which comes back with "action": None.
    * `RenameObservationsProcessorStep.rename_map`; `norm_map`, `features` and `stats` of the normalisers,
      which leave a feature without statistics as it is.
    * `PreTrainedPolicy.from_pretrained(path, config=...)`, not strict, `reset`, `predict_action_chunk(batch)`
      -> (B, H, J) and `select_action(batch)` -> (B, J), normalised; `_queues` of Diffusion and VQ-BeT;
      `lerobot.policies.utils.populate_queues`.
    * PI05Policy.from_pretrained returns a network as it was initialised where its weights do not load.

tests/examples/test_real_lerobot.py runs where a real lerobot is installed: it passed with all three (0.5.1
with its Python 3.12 syntax rewritten for 3.11).
"""
