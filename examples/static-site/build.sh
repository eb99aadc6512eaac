#!/bin/sh
# Makes public/ of pages/ and style/: every page gets the frame, and index.html lists all pages by title.
set -eu

frame() { # title, then the body on stdin
    printf '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>%s</title>\n' "$1"
    printf '<link rel="stylesheet" href="site.css">\n<body>\n'
    cat
    printf '<footer>commit %s</footer>\n</body>\n</html>\n' "${MC_COMMIT:-unknown}"
}

mkdir -p public
cp style/site.css public/

list=
for page in pages/*.html; do
    name=$(basename "$page")
    title=$(sed -n 's:.*<h1>\(.*\)</h1>.*:\1:p' "$page" | head -n 1)
    frame "$title" < "$page" > "public/$name"
    list="$list<li><a href=\"$name\">$title</a></li>
"
done
printf '<h1>All pages</h1>\n<ul>\n%s</ul>\n' "$list" | frame 'All pages' > public/index.html
echo "made $(ls public/*.html | wc -l) pages"
