"""Keys of tensors in openpi's model.safetensors; every layout has these, some with a prefix before them."""

PALIGEMMA = "paligemma_with_expert.paligemma."
TOWER = f"{PALIGEMMA}model.vision_tower.vision_model."
LANGUAGE = f"{PALIGEMMA}model.language_model."
EXPERT = "paligemma_with_expert.gemma_expert."
EMBEDDING_KEY = f"{PALIGEMMA}lm_head.weight"
TIED_EMBEDDING_KEY = f"{LANGUAGE}embed_tokens.weight"  # the same tensor; either may be stored, or both
