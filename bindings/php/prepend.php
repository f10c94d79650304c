<?php

/**
 * For auto_prepend_file in php.ini: a program finds the library without a line that loads it.
 *
 * The ini file may have the setting apachews.prepended_before: the file that auto_prepend_file
 * named before, which this file loads too.
 */

declare(strict_types=1);

// PHP's development server (php -S) reads the same ini files; its pages load nothing.
if (PHP_SAPI === 'cli') {
    // The program may have another copy of the library, for example from Composer. Its functions
    // are defined then, and cannot be defined again, so that copy serves the classes too.
    spl_autoload_register(static function (string $class): void {
        if (str_starts_with($class, 'apachews\\') && !function_exists('apachews\publish')) {
            require_once __DIR__ . '/autoload.php';
        }
    });
}

if (get_cfg_var('apachews.prepended_before')) {
    require get_cfg_var('apachews.prepended_before');
}
