"""How to tell whose weights a file holds: words in the key names that only one system of the field has."""

from __future__ import annotations

from collections.abc import Iterable

SIGNATURES: dict[str, tuple[str, ...]] = {
    "uniter": ("uniter.", "img_embeddings.", "feat_regress.", "region_classifier.", "itm_output."),
    "visualbert": (
        "token_type_embeddings_visual",
        "position_embeddings_visual",
        "embeddings.projection.",
        "visual_token_type",
        "visual_bert.",
    ),
    "vl_bert": ("vlbert.", "obj_downsample.", "object_linguistic_embeddings", "object_mask_word_embedding"),
    "unicoder_vl": ("image_location_embeddings.", "seq_relationship.", "pred_obj_layer.", "transformer_obj."),
    "b2t2": ("position_x_embeddings", "position_y_embeddings", "bert/embeddings/dense/"),
    "vlp": ("vis_embed.", "vis_pe_embed.", "ans_classifier."),
    "fashionbert": ("image_projector", "patch_position_embeddings", "patch_type_embeddings", "img_predictions"),
    "oscar": ("img_embedding.", "code_embeddings."),
    "vilbert": ("v_embeddings.", "encoder.c_layer.", "encoder.v_layer.", "bi_seq_relationship", "imagePredictions."),
    "lxmert": ("x_layers.", "r_layers.", "visn_fc.", "obj_predict_head.", "answer_head."),
    "ernie_vil": ("encoder_colayer_", "encoder_vlayer_", "pooled_fc_image", "image_loc."),
    "wenlan": ("imgencoder.", "textencoder.", "imgencoder_mom.", "textencoder_mom."),
    "bert": (
        "bert.embeddings.",
        "bert.encoder.layer.",
        "cls.predictions.",
        "encoder.layer.",
        "embeddings.word_embeddings.",
    ),
}
"""Per system, from the most telling to the least. Plain BERT comes last: every system holds some of its keys."""


def whose(keys: Iterable[str]) -> str | None:
    """The system whose signature the most keys bear, or None when no key bears any; plain BERT only when nothing else fits."""
    listed = list(keys)
    hits = {name: sum(any(sign in key for sign in signs) for key in listed) for name, signs in SIGNATURES.items()}
    special = {name: count for name, count in hits.items() if count and name != "bert"}
    if special:
        return max(special, key=special.__getitem__)
    return "bert" if hits["bert"] else None
