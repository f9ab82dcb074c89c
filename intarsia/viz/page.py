"""The style sheet of a report page: light and dark, wide and narrow, on paper."""

CSS = """
:root{color-scheme:light dark;--ground:#fff;--card:#f6f7f9;--line:#dfe3ea;--ink:#1d2129;--soft:#687080;
  --accent:#3f6fb5;--warm:#d9822b;--yes:#15803d;--no:#c2273d}
@media (prefers-color-scheme:dark){:root{--ground:#14171c;--card:#1d2128;--line:#333a45;--ink:#e7eaf0;
  --soft:#9aa3b2;--accent:#7aa5e6;--warm:#e9a45c;--yes:#4ade80;--no:#fb7185}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:2.2rem 1.4rem 4rem;background:var(--ground);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC","PingFang SC",
  "Microsoft YaHei",sans-serif}
header p{max-width:50rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.25rem;margin:2.8rem 0 .5rem}
p{margin:.4rem 0 .9rem;max-width:50rem}
.soft,figcaption .soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(186px,1fr));gap:.9rem;margin:1.6rem 0 0}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.95rem 1.05rem}
.cards strong{display:block;font-size:2rem;line-height:1.15;font-variant-numeric:tabular-nums}
.cards span{display:block;font-size:.86rem;color:var(--soft)}
.cards .what{color:var(--ink);font-weight:600;font-size:.9rem}
.bar{position:relative;height:6px;border-radius:3px;background:var(--line);margin:.5rem 0 .45rem;overflow:hidden}
.bar i{position:absolute;left:0;top:0;bottom:0;background:var(--accent)}
.bar b{position:absolute;top:0;bottom:0;width:2px;background:var(--warm)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
.wide table{min-width:60%;margin:.4rem 0 .6rem}
th,td{text-align:right;padding:.38rem .9rem .38rem 0;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{font-weight:600;color:var(--soft);font-size:.86rem}
td small{color:var(--soft)}
.curves svg{width:100%;height:auto;display:block}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1rem;margin-top:1rem}
.case{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden;
  break-inside:avoid}
.case svg{display:block;width:100%;height:auto}
.case figcaption{padding:.6rem .85rem .8rem}
.case .said{margin:0 0 .35rem;line-height:1.4}
.case table{width:100%;font-size:.8rem}
.case th,.case td{padding:.16rem .5rem .16rem 0;text-align:left}
.case tr:last-child td{border-bottom:0}
.yes{color:var(--yes);font-weight:700}
.no{color:var(--no);font-weight:700}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:.1rem 1.6rem;margin:.4rem 0 1rem}
.facts dt{color:var(--soft);font-size:.84rem}
.facts dd{margin:0 0 .55rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
details{margin-top:.6rem}
summary{cursor:pointer;color:var(--accent)}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;overflow-x:auto;
  font-size:.8rem;line-height:1.45}
footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
@media print{body{max-width:none;padding:0;font-size:11pt}.gallery{grid-template-columns:repeat(3,1fr)}details{
  display:none}.cards div,.case,.wide{break-inside:avoid}h2{break-after:avoid}}
"""
