/* wordfreq: counts the words of its input and prints them, the most frequent first. */
#include <ctype.h>
#include <stdio.h>

#include "table.h"

int main(void)
{
    struct table table = {0};
    char word[256];
    size_t length = 0;
    for (;;) {
        int c = getchar();
        if (c != EOF && isalpha(c)) {
            if (length < sizeof word - 1)
                word[length++] = (char)tolower(c);
            continue;
        }
        word[length] = '\0';
        if (length && !table_add(&table, word)) {
            fputs("wordfreq: no memory\n", stderr);
            return 1;
        }
        length = 0;
        if (c == EOF)
            break;
    }
    table_sort(&table);
    for (size_t i = 0; i < table.used; i++)
        printf("%lu %s\n", table.entries[i].count, table.entries[i].word);
    table_free(&table);
    return fflush(stdout) ? 1 : 0;
}
