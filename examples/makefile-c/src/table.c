#include "table.h"

#include <stdlib.h>
#include <string.h>

int table_add(struct table *table, const char *word)
{
    for (size_t i = 0; i < table->used; i++) {
        if (strcmp(table->entries[i].word, word) == 0) {
            table->entries[i].count++;
            return 1;
        }
    }
    if (table->used == table->room) {
        size_t room = table->room ? table->room * 2 : 64;
        struct entry *grown = realloc(table->entries, room * sizeof *grown);
        if (!grown)
            return 0;
        table->entries = grown;
        table->room = room;
    }
    size_t length = strlen(word) + 1;
    char *copy = malloc(length);
    if (!copy)
        return 0;
    memcpy(copy, word, length);
    table->entries[table->used++] = (struct entry){copy, 1};
    return 1;
}

static int by_count(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    if (a->count != b->count)
        return a->count < b->count ? 1 : -1;
    return strcmp(a->word, b->word);
}

void table_sort(struct table *table)
{
    if (table->used)
        qsort(table->entries, table->used, sizeof *table->entries, by_count);
}

void table_free(struct table *table)
{
    for (size_t i = 0; i < table->used; i++)
        free(table->entries[i].word);
    free(table->entries);
}
