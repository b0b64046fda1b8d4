#!/bin/sh
# runc, on a machine that has no CAP_SYS_RESOURCE to give: whoever asks for it goes without.
for word; do
    [ "$before" = --bundle ] && sed -i 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g' "$word/config.json"
    before=$word
done
exec runc "$@"
