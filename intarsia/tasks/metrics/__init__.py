"""The field's official metrics, one module a benchmark, on plain strings, lists and numpy arrays. Fractions inside, percent is for printing.

    folding      predictions of all processes put together: duplicates dropped, missing ones refused
    vqa          VQA v2: normalised answers, accuracy, soft targets, the answer list
    gqa          GQA: accuracy, validity, plausibility, consistency, distribution
    choices      VCR, NLVR2, Visual7W and any accuracy by choice
    ranking      recall at K with ties, R@K of videos, MUGE, FashionGen
    overlap      the field's ways to overlap two boxes, accuracy of referring expressions
    entities     Flickr30k Entities: its files, phrase grounding
    captions     BLEU, ROUGE-L, CIDEr-D
    ptb          the tokens captions are compared by
    java         METEOR, SPICE and the original tokenizer, by their authors' own jars
    submissions  files for the benchmarks' servers

Where authors disagree, a function takes `convention`; its default is the official code of today.
"""
